-- Where training stands still: stall ratio by format and matrix, mean and largest, and the share of rows at the limit.
SELECT
    run, format, matrix,
    avg(stall_ratio) AS stall_ratio,
    max(stall_ratio) AS highest,
    count(*) FILTER (stall_ratio >= 0.9999) / count(*) AS stalled
FROM layers
WHERE stall_ratio IS NOT NULL
GROUP BY run, format, matrix
ORDER BY stall_ratio DESC, run, format, matrix
