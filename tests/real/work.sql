-- SPDX-License-Identifier: Apache-2.0
-- Recursive queries, indexes, joins, windows, triggers: one round, whose answers are known.
DROP TABLE IF EXISTS numbers;
DROP TABLE IF EXISTS pairs;
DROP TABLE IF EXISTS log;
BEGIN;
CREATE TABLE numbers (n INTEGER PRIMARY KEY, square INTEGER, name TEXT, half REAL);
WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < 20000)
INSERT INTO numbers SELECT n, n * n, printf('%05d-%s', (n * 7919) % 20011, hex(n)), n / 2.0 FROM count;
CREATE INDEX by_name ON numbers (name, n);
CREATE INDEX by_residue ON numbers (square % 97);
COMMIT;
SELECT 'sum', sum(n), sum(square), total(half) FROM numbers;
SELECT 'first by name', n, name FROM numbers ORDER BY name LIMIT 1;
SELECT 'residues', count(DISTINCT square % 97) FROM numbers;
WITH RECURSIVE
	composite(n, k) AS (
		SELECT 4, 2 UNION
		SELECT CASE WHEN n + k <= 2000 THEN n + k ELSE (k + 1) * (k + 1) END,
			CASE WHEN n + k <= 2000 THEN k ELSE k + 1 END
		FROM composite WHERE k < 45)
SELECT 'primes', count(*), sum(n) FROM numbers
WHERE n BETWEEN 2 AND 2000 AND n NOT IN (SELECT n FROM composite);
WITH RECURSIVE fibonacci(i, a, b) AS (SELECT 1, 0, 1 UNION ALL SELECT i + 1, b, a + b FROM fibonacci WHERE i < 90)
SELECT 'fibonacci', max(a) FROM fibonacci;
WITH RECURSIVE collatz(start, n, steps) AS (
	SELECT n, n, 0 FROM numbers WHERE n < 60 UNION ALL
	SELECT start, CASE n % 2 WHEN 0 THEN n / 2 ELSE 3 * n + 1 END, steps + 1 FROM collatz WHERE n > 1)
SELECT 'collatz', start, max(steps) FROM collatz GROUP BY start ORDER BY 3 DESC, 2 LIMIT 1;
WITH RECURSIVE
	digits(d, z) AS (VALUES ('1', 1) UNION ALL SELECT CAST(z + 1 AS TEXT), z + 1 FROM digits WHERE z < 9),
	queens(row, board) AS (
		SELECT 0, '' UNION ALL
		SELECT row + 1, board || d FROM queens, digits WHERE row < 6 AND d <= '6'
			AND instr(board, d) = 0
			AND NOT EXISTS (SELECT 1 FROM digits AS p WHERE p.z <= row
				AND abs(CAST(substr(board, p.z, 1) AS INTEGER) - CAST(d AS INTEGER)) = row + 1 - p.z))
SELECT 'six queens', count(*) FROM queens WHERE row = 6;
CREATE TABLE pairs (a INTEGER, b INTEGER);
CREATE TABLE log (what TEXT);
CREATE TRIGGER note AFTER DELETE ON pairs BEGIN INSERT INTO log VALUES (old.a || ',' || old.b); END;
INSERT INTO pairs SELECT x.n, y.n FROM numbers AS x JOIN numbers AS y ON y.n = x.square WHERE x.n <= 140;
DELETE FROM pairs WHERE a % 2;
SELECT 'trigger', count(*), max(length(what)) FROM log;
SELECT 'window', sum(d) FROM (SELECT n - lag(n, 1, 0) OVER (ORDER BY n DESC) AS d FROM numbers WHERE n % 3 = 0);
SELECT 'json', json_extract(json_group_array(json_object('n', n, 'h', half)), '$[99].h') FROM (SELECT * FROM numbers ORDER BY n LIMIT 200);
SELECT 'like', count(*) FROM numbers WHERE name LIKE '%-3_3%' OR name GLOB '*[0-4]-39*';
SELECT 'math', round(sum(sqrt(n)), 6), printf('%.3e', sum(exp(-half / 1000))) FROM numbers;
SELECT 'order', group_concat(n) FROM (SELECT n FROM numbers ORDER BY square % 97, name DESC LIMIT 5);
PRAGMA integrity_check;
SELECT 'end of round';
