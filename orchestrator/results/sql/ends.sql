-- How each trial ended, at which step, and the numbers that was decided on.
WITH decisions AS (
    SELECT run, key, kind, value, reference, threshold, message
    FROM events
    QUALIFY row_number() OVER (PARTITION BY run, key, kind ORDER BY step DESC, attempt DESC) = 1
)
SELECT
    t.run, t.cell, t.lr, t.seed,
    coalesce(t.reason, t.status) AS ended,
    t.step,
    d.value, d.reference, d.threshold,
    coalesce(d.message, t.error) AS message
FROM trials t
LEFT JOIN decisions d ON d.run = t.run AND d.key = t.key AND d.kind = t.reason
ORDER BY t.run, ended, t.step, t.cell, t.lr, t.seed
