-- SPDX-License-Identifier: Apache-2.0
-- One round for MariaDB, whose answers are always the same.
DROP TABLE IF EXISTS pairs, numbers;
SET max_recursive_iterations = 100000;
CREATE TABLE numbers (n INT PRIMARY KEY, square BIGINT, name VARCHAR(40), half DOUBLE, KEY by_name (name)) ENGINE=InnoDB;
INSERT INTO numbers WITH RECURSIVE count (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < 4000)
	SELECT n, n * n, CONCAT(LPAD(n * 7919 MOD 4001, 5, '0'), '-', HEX(n)), n / 2 FROM count;
SELECT 'sum', SUM(n), SUM(square), SUM(half) FROM numbers;
SELECT 'by name', n, name FROM numbers ORDER BY name LIMIT 3;
SELECT 'primes', COUNT(*), SUM(n) FROM numbers AS p WHERE n BETWEEN 2 AND 2000
	AND NOT EXISTS (SELECT 1 FROM numbers AS d WHERE d.n BETWEEN 2 AND 44 AND d.n < p.n AND p.n MOD d.n = 0);
WITH RECURSIVE fibonacci (i, a, b) AS (SELECT 1, CAST(0 AS DECIMAL(30)), CAST(1 AS DECIMAL(30)) UNION ALL SELECT i + 1, b, a + b FROM fibonacci WHERE i < 80)
	SELECT 'fibonacci', MAX(a) FROM fibonacci;
CREATE TABLE pairs (a INT, b INT, FOREIGN KEY (a) REFERENCES numbers (n)) ENGINE=InnoDB;
START TRANSACTION;
INSERT INTO pairs SELECT x.n, y.n FROM numbers AS x JOIN numbers AS y ON y.n = x.square;
SAVEPOINT half;
DELETE FROM pairs WHERE a MOD 2;
SELECT 'pairs', COUNT(*), SUM(b) FROM pairs;
ROLLBACK TO half;
COMMIT;
SELECT 'pairs again', COUNT(*), SUM(b) FROM pairs;
SELECT 'window', SUM(d) FROM (SELECT n - COALESCE(LAG(n) OVER (ORDER BY n DESC), 0) AS d FROM numbers WHERE n MOD 3 = 0) AS w;
SELECT 'json', JSON_EXTRACT(JSON_ARRAYAGG(JSON_OBJECT('n', n, 'h', half) ORDER BY n), '$[9].h') FROM numbers WHERE n < 30;
SELECT 'text', MD5(GROUP_CONCAT(name ORDER BY n SEPARATOR '')), SHA2(GROUP_CONCAT(half ORDER BY n), 256) FROM numbers WHERE n < 50;
SELECT 'regexp', COUNT(*) FROM numbers WHERE name REGEXP '^[0-9]+3[0-4].*-[A-F]+$';
SELECT 'math', ROUND(SUM(SQRT(n)), 4), ROUND(SUM(EXP(-half / 1000)), 4), CAST(SUM(n) AS DECIMAL(60, 20)) / 7 FROM numbers;
SELECT 'groups', square MOD 11 AS r, COUNT(*), MAX(name) FROM numbers GROUP BY r ORDER BY r;
SELECT 'date', DATE_ADD('2024-02-28', INTERVAL 2 DAY), DATEDIFF('2024-12-31', '2024-01-01');
SELECT 'check', COUNT(*) FROM numbers WHERE n IN (SELECT a FROM pairs UNION SELECT b FROM pairs);
