-- The negative control: E0M7 and E1M6 are one grid, so trials alike in all else must agree in every row, to the bit.
WITH pairs AS (
    SELECT a.run, a.key AS a, b.key AS b, a.optimizer, a.storage, a.layers, a.lr, a.seed
    FROM trials a
    JOIN trials b ON b.run = a.run AND b.config = replace(a.config, '"E0M7"', '"E1M6"')
    WHERE a.format = 'E0M7' AND b.format = 'E1M6'
),
rows AS (
    SELECT run, key, step, loss, val_loss, grad_norm, flips, stall_ratio
    FROM steps
    WHERE key IN (SELECT a FROM pairs UNION ALL SELECT b FROM pairs)
)
SELECT
    p.run, p.optimizer, p.storage, p.layers, p.lr, p.seed,
    count(*) AS steps,
    count(*) FILTER (
        a.loss IS DISTINCT FROM b.loss OR a.val_loss IS DISTINCT FROM b.val_loss
        OR a.grad_norm IS DISTINCT FROM b.grad_norm OR a.flips IS DISTINCT FROM b.flips
        OR a.stall_ratio IS DISTINCT FROM b.stall_ratio
    ) AS unequal,
    min(a.step) FILTER (a.loss IS DISTINCT FROM b.loss OR a.flips IS DISTINCT FROM b.flips) AS first_unequal,
    max(abs(a.loss - b.loss)) AS largest_difference
FROM pairs p
JOIN rows a ON a.run = p.run AND a.key = p.a
JOIN rows b ON b.run = p.run AND b.key = p.b AND b.step = a.step
GROUP BY ALL
ORDER BY unequal DESC, p.run, p.optimizer, p.storage, p.layers, p.lr, p.seed
