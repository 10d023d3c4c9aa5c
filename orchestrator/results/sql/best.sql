-- The best settings: last validation loss, mean over seeds; settings with a diverged seed come last.
SELECT
    run, cell, any_value(lr) AS lr, min(key) AS one_trial,
    count(val_loss) AS n,
    count(*) FILTER (reason = 'diverged') AS diverged,
    avg(val_loss) AS val_loss,
    stddev_samp(val_loss) AS std,
    min(val_loss) AS lowest,
    max(val_loss) AS highest,
    min(step) AS step
FROM trials
WHERE status <> 'failed'
GROUP BY run, cell, regexp_replace(config, '"seed": -?[0-9]+', '"seed": 0')
HAVING count(val_loss) > 0
ORDER BY diverged > 0, val_loss, run, cell, lr, one_trial
