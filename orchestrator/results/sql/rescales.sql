-- Codes changed because a scale moved, beside those changed by the optimizer: by cell, and the share of steps with any.
WITH sums AS (
    SELECT
        run, key,
        sum(flips) AS flips,
        sum(rescale_flips) AS rescale_flips,
        count(*) FILTER (rescale_flips > 0) AS moved,
        count(rescale_flips) AS steps
    FROM steps
    GROUP BY run, key
)
SELECT
    t.run, t.cell,
    CAST(sum(s.flips) AS BIGINT) AS flips,
    CAST(sum(s.rescale_flips) AS BIGINT) AS rescale_flips,
    sum(s.rescale_flips) / nullif(sum(s.flips) + sum(s.rescale_flips), 0) AS rescale_share,
    sum(s.moved) / sum(s.steps) AS steps_with_rescale
FROM sums s
JOIN trials t ON t.run = s.run AND t.key = s.key
WHERE s.steps > 0
GROUP BY t.run, t.cell
ORDER BY rescale_share DESC NULLS LAST, t.run, t.cell
