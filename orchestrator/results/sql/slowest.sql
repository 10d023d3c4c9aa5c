-- The slowest learners: when each trial first came down to the median of all last validation losses; never comes first.
WITH goal AS (
    SELECT run, median(val_loss) AS val_loss FROM trials GROUP BY run
),
reached AS (
    SELECT s.run, s.key, min(s.step) AS step, min(s.tokens) AS tokens
    FROM steps s
    JOIN goal g ON g.run = s.run
    WHERE s.val_loss <= g.val_loss
    GROUP BY s.run, s.key
)
SELECT t.run, t.cell, t.lr, t.seed, r.step AS reached_step, r.tokens AS reached_tokens, t.best_val_loss, g.val_loss AS goal
FROM trials t
JOIN goal g ON g.run = t.run
LEFT JOIN reached r ON r.run = t.run AND r.key = t.key
WHERE t.step IS NOT NULL
ORDER BY reached_step DESC NULLS FIRST, t.best_val_loss DESC, t.run, t.cell, t.lr, t.seed
