-- The negative control: E0M7 and E1M6 are one grid, so trials alike in all else must agree at every step both have.
WITH pairs AS MATERIALIZED (
    SELECT row_number() OVER () AS pair, a.run, a.key AS a, b.key AS b, a.optimizer, a.storage, a.layers, a.lr, a.seed
    FROM trials a
    JOIN trials b ON b.run = a.run AND b.config = replace(a.config, '"E0M7"', '"E1M6"')
    WHERE a.format = 'E0M7' AND b.format = 'E1M6'
),
members AS MATERIALIZED (
    SELECT run, a AS key, pair, true AS is_first FROM pairs UNION ALL SELECT run, b, pair, false FROM pairs
),
rows AS MATERIALIZED (
    SELECT m.pair, m.is_first, s.step, s.loss, s.val_loss, s.grad_norm, s.flips, s.stall_ratio
    FROM steps s
    JOIN members m ON m.run = s.run AND m.key = s.key
),
compared AS (
    SELECT
        a.pair,
        count(*) AS steps,
        count(*) FILTER (
            a.loss IS DISTINCT FROM b.loss OR a.val_loss IS DISTINCT FROM b.val_loss
            OR a.grad_norm IS DISTINCT FROM b.grad_norm OR a.flips IS DISTINCT FROM b.flips
            OR a.stall_ratio IS DISTINCT FROM b.stall_ratio
        ) AS unequal,
        min(a.step) FILTER (a.loss IS DISTINCT FROM b.loss OR a.flips IS DISTINCT FROM b.flips) AS first_unequal,
        max(abs(a.loss - b.loss)) AS largest_difference
    FROM rows a
    JOIN rows b ON b.pair = a.pair AND b.step = a.step
    WHERE a.is_first AND NOT b.is_first
    GROUP BY a.pair
)
SELECT
    p.run, p.optimizer, p.storage, p.layers, p.lr, p.seed, c.steps, c.unequal, c.first_unequal, c.largest_difference
FROM compared c
JOIN pairs p ON p.pair = c.pair
ORDER BY c.unequal DESC, p.run, p.optimizer, p.storage, p.layers, p.lr, p.seed
