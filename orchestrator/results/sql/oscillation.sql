-- Weights that swing to and fro: the share of flips that reverse the element's last flip, and rungs moved, by cell.
WITH sums AS (
    SELECT
        run, key,
        sum(flips) AS flips,
        sum(oscillations) AS oscillations,
        sum(rung_distance) AS rungs,
        count(rung_distance) AS steps
    FROM steps
    GROUP BY run, key
)
SELECT
    t.run, t.cell,
    CAST(sum(s.flips) AS BIGINT) AS flips,
    CAST(sum(s.oscillations) AS BIGINT) AS oscillations,
    sum(s.oscillations) / nullif(sum(s.flips), 0) AS oscillating,
    sum(s.rungs) / nullif(sum(s.steps), 0) AS rung_distance
FROM sums s
JOIN trials t ON t.run = s.run AND t.key = s.key
WHERE s.oscillations IS NOT NULL
GROUP BY t.run, t.cell
ORDER BY oscillating DESC NULLS LAST, t.run, t.cell
