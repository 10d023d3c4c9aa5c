-- Values at the last rung and values rounded to zero, by format and matrix: shares of weights, activations, gradients.
SELECT
    run, format, matrix,
    avg(weight_saturated) AS weight_saturated,
    avg(weight_underflowed) AS weight_underflowed,
    avg(activation_saturated) AS activation_saturated,
    avg(activation_underflowed) AS activation_underflowed,
    avg(gradient_saturated) AS gradient_saturated,
    avg(gradient_underflowed) AS gradient_underflowed
FROM layers
GROUP BY run, format, matrix
HAVING count(weight_saturated) + count(activation_saturated) + count(gradient_saturated) > 0
ORDER BY run, format, matrix
