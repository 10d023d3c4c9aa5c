-- Flips over time, by cell and twentieth of the planned steps: codes changed for each element updated, and stall ratio.
WITH length AS (
    SELECT run, max(steps_planned) AS steps FROM trials GROUP BY run
),
sums AS (
    SELECT
        s.run, s.key,
        (s.step - 1) * 20 // l.steps AS part,
        max(s.step) AS step,
        sum(s.flips) AS flips,
        sum(s.updates) AS updates,
        sum(s.stall_ratio) AS stall_ratio,
        count(s.stall_ratio) AS rows
    FROM steps s
    JOIN length l ON l.run = s.run
    GROUP BY s.run, s.key, part
)
SELECT
    t.run, t.cell,
    max(s.step) AS to_step,
    count(*) AS trials,
    sum(s.flips) / nullif(sum(s.updates), 0) AS flips_per_update,
    sum(s.stall_ratio) / nullif(sum(s.rows), 0) AS stall_ratio
FROM sums s
JOIN trials t ON t.run = s.run AND t.key = s.key
GROUP BY t.run, t.cell, s.part
HAVING sum(s.rows) > 0
ORDER BY t.run, t.cell, to_step
