-- Rank warnings by cell and matrix: how many, in how many trials, the first step, the lowest rank over the control's.
SELECT
    t.run, t.cell, e.matrix,
    count(*) AS warnings,
    count(DISTINCT e.key) AS trials,
    min(e.step) AS first_step,
    min(e.value / e.reference) AS lowest_ratio
FROM events e
JOIN trials t ON t.run = e.run AND t.key = e.key
WHERE e.kind = 'rank_warning'
GROUP BY t.run, t.cell, e.matrix
ORDER BY warnings DESC, t.run, t.cell, e.matrix
