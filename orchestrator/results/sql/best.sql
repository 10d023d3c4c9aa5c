-- The best settings: last validation loss, mean over replicates; settings with a diverged replicate come last.
SELECT
    run, cell, lr,
    count(val_loss) AS n,
    count(*) FILTER (reason = 'diverged') AS diverged,
    avg(val_loss) AS val_loss,
    stddev_samp(val_loss) AS std,
    min(val_loss) AS lowest,
    max(val_loss) AS highest,
    min(step) AS step
FROM trials
WHERE status <> 'failed'
GROUP BY run, cell, lr
HAVING count(val_loss) > 0
ORDER BY diverged > 0, val_loss, run, cell, lr
