-- The first step at which a matrix stands still (stall ratio at 0.9999 or above): by cell and matrix, earliest first.
WITH firsts AS (
    SELECT run, key, matrix, min(step) AS step
    FROM layers
    WHERE stall_ratio >= 0.9999
    GROUP BY run, key, matrix
)
SELECT
    t.run, t.cell, f.matrix,
    min(f.step) AS first_step,
    median(f.step) AS median_step,
    count(*) AS trials
FROM firsts f
JOIN trials t ON t.run = f.run AND t.key = f.key
GROUP BY t.run, t.cell, f.matrix
ORDER BY first_step, t.run, t.cell, f.matrix
