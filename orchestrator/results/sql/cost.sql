-- What it cost, by cell: seconds that its packs trained, steps and tokens of its trials, tokens a second.
WITH reached AS (
    SELECT run, key, max(tokens) AS tokens FROM steps GROUP BY run, key
),
packs AS (
    SELECT
        t.run, t.cell, t.pack,
        count(*) AS trials,
        max(t.seconds) AS seconds,
        sum(t.step) AS steps,
        sum(r.tokens) AS tokens
    FROM trials t
    LEFT JOIN reached r ON r.run = t.run AND r.key = t.key
    GROUP BY t.run, t.cell, t.pack
)
SELECT
    run, cell,
    count(*) AS packs,
    CAST(sum(trials) AS BIGINT) AS trials,
    sum(seconds) AS seconds,
    CAST(sum(steps) AS BIGINT) AS steps,
    CAST(sum(tokens) AS BIGINT) AS tokens,
    sum(tokens) FILTER (seconds > 0) / sum(seconds) FILTER (seconds > 0) AS tokens_per_second
FROM packs
GROUP BY run, cell
ORDER BY seconds DESC NULLS LAST, run, cell
