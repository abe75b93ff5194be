SELECT id, id FROM customers WHERE id = 7 ORDER BY id
SELECT id, id FROM customers WHERE id <> 7 ORDER BY id
SELECT id, id FROM customers WHERE id < 7 ORDER BY id
SELECT id, id FROM customers WHERE id >= 7 ORDER BY id
SELECT id FROM customers WHERE id IN (7, 42, 500) ORDER BY id
SELECT count(*) FROM customers WHERE id IS NULL
SELECT id, count(*) FROM customers GROUP BY id ORDER BY 2 DESC, 1 LIMIT 5
SELECT id, branch FROM customers WHERE branch = '0042' ORDER BY id
SELECT id, branch FROM customers WHERE branch <> '0042' ORDER BY id
SELECT id, branch FROM customers WHERE branch < '0042' ORDER BY id
SELECT id, branch FROM customers WHERE branch >= '0042' ORDER BY id
SELECT id FROM customers WHERE branch IN ('0042', '0007') ORDER BY id
SELECT count(*) FROM customers WHERE branch IS NULL
SELECT branch, count(*) FROM customers GROUP BY branch ORDER BY 2 DESC, 1 LIMIT 5
SELECT id, name FROM customers WHERE name = 'Ada Abel' ORDER BY id
SELECT id, name FROM customers WHERE name <> 'Ada Abel' ORDER BY id
SELECT id, name FROM customers WHERE name < 'Ada Abel' ORDER BY id
SELECT id, name FROM customers WHERE name >= 'Ada Abel' ORDER BY id
SELECT id FROM customers WHERE name IN ('Ada Abel', 'Bob Berg') ORDER BY id
SELECT count(*) FROM customers WHERE name IS NULL
SELECT name, count(*) FROM customers GROUP BY name ORDER BY 2 DESC, 1 LIMIT 5
SELECT id, score FROM customers WHERE score = 10 ORDER BY id
SELECT id, score FROM customers WHERE score <> 10 ORDER BY id
SELECT id, score FROM customers WHERE score < 10 ORDER BY id
SELECT id, score FROM customers WHERE score >= 10 ORDER BY id
SELECT id FROM customers WHERE score IN (10, 50) ORDER BY id
SELECT count(*) FROM customers WHERE score IS NULL
SELECT score, count(*) FROM customers GROUP BY score ORDER BY 2 DESC, 1 LIMIT 5
SELECT id, balance FROM customers WHERE balance = 100 ORDER BY id
SELECT id, balance FROM customers WHERE balance <> 100 ORDER BY id
SELECT id, balance FROM customers WHERE balance < 100 ORDER BY id
SELECT id, balance FROM customers WHERE balance >= 100 ORDER BY id
SELECT id FROM customers WHERE balance IN (100, 2500.50) ORDER BY id
SELECT count(*) FROM customers WHERE balance IS NULL
SELECT balance, count(*) FROM customers GROUP BY balance ORDER BY 2 DESC, 1 LIMIT 5
SELECT id, since FROM customers WHERE since = '2021-03-04' ORDER BY id
SELECT id, since FROM customers WHERE since <> '2021-03-04' ORDER BY id
SELECT id, since FROM customers WHERE since < '2021-03-04' ORDER BY id
SELECT id, since FROM customers WHERE since >= '2021-03-04' ORDER BY id
SELECT id FROM customers WHERE since IN ('2021-03-04', DATE '2022-01-01') ORDER BY id
SELECT count(*) FROM customers WHERE since IS NULL
SELECT since, count(*) FROM customers GROUP BY since ORDER BY 2 DESC, 1 LIMIT 5
SELECT id, active FROM customers WHERE active = true ORDER BY id
SELECT id, active FROM customers WHERE active <> true ORDER BY id
SELECT id FROM customers WHERE active IN (true, false) ORDER BY id
SELECT count(*) FROM customers WHERE active IS NULL
SELECT active, count(*) FROM customers GROUP BY active ORDER BY 2 DESC, 1 LIMIT 5
SELECT id, note FROM customers WHERE note = 'vip' ORDER BY id
SELECT id, note FROM customers WHERE note <> 'vip' ORDER BY id
SELECT id, note FROM customers WHERE note < 'vip' ORDER BY id
SELECT id, note FROM customers WHERE note >= 'vip' ORDER BY id
SELECT id FROM customers WHERE note IN ('vip', 'late') ORDER BY id
SELECT count(*) FROM customers WHERE note IS NULL
SELECT note, count(*) FROM customers GROUP BY note ORDER BY 2 DESC, 1 LIMIT 5
SELECT id, name FROM customers WHERE lower(name) LIKE 'a%' ORDER BY id
SELECT id, name FROM customers WHERE name ILIKE '%berg%' ORDER BY id
SELECT id, name FROM customers WHERE length(name) > 12 ORDER BY id
SELECT id, name FROM customers WHERE score / 1 > 50 ORDER BY id
SELECT id, name FROM customers WHERE score + id > 700 ORDER BY id
SELECT id, name FROM customers WHERE balance * 2 > 5000 ORDER BY id
SELECT id, name FROM customers WHERE (balance / (score + 1)) > 100 ORDER BY id
SELECT id, name FROM customers WHERE note IS NOT NULL AND upper(note) = 'VIP' ORDER BY id
SELECT id, name FROM customers WHERE coalesce(note, 'none') = 'none' ORDER BY id
SELECT id, name FROM customers WHERE substr(name, 1, 1) = 'C' ORDER BY id
SELECT id, name FROM customers WHERE since BETWEEN '2021-01-01' AND '2021-12-31' ORDER BY id
SELECT id, name FROM customers WHERE since - 7 > DATE '2023-01-01' ORDER BY id
SELECT id, name FROM customers WHERE since > DATE '2023-01-01' AND score > 20 ORDER BY id
SELECT id, name FROM customers WHERE NOT active ORDER BY id
SELECT id, name FROM customers WHERE active IS NOT TRUE ORDER BY id
SELECT id, name FROM customers WHERE active AND NOT (score > 50) ORDER BY id
SELECT id, name FROM customers WHERE id % 10 = 3 ORDER BY id
SELECT id, name FROM customers WHERE id = ANY (ARRAY[1, 2, 3, 40, 500]) ORDER BY id
SELECT id, name FROM customers WHERE id <> ALL (ARRAY[1, 2, 3]) ORDER BY id
SELECT id, name FROM customers WHERE (id, branch) = (7, '0042') ORDER BY id
SELECT id, name FROM customers WHERE nullif(note, 'vip') IS NULL ORDER BY id
SELECT id, name FROM customers WHERE CASE WHEN score > 50 THEN active ELSE NOT active END ORDER BY id
SELECT id, name FROM customers WHERE extract(year FROM since) = 2022 ORDER BY id
SELECT id, name FROM customers WHERE date_trunc('month', since::timestamp) = timestamp '2022-05-01' ORDER BY id
SELECT id, name FROM customers WHERE position('a' IN name) > 3 ORDER BY id
SELECT id, name FROM customers WHERE greatest(score, 40) = 40 ORDER BY id
SELECT id, name FROM customers WHERE name = 'Ada Abel' OR branch = '0007' ORDER BY id
SELECT id, name FROM customers WHERE id IN (SELECT customer_id FROM accounts WHERE balance > 9000) ORDER BY id
SELECT id, name FROM customers WHERE id NOT IN (SELECT customer_id FROM accounts) ORDER BY id
SELECT id, name FROM customers WHERE EXISTS (SELECT 1 FROM accounts a WHERE a.customer_id = customers.id AND a.kind = 'savings') ORDER BY id
SELECT id, name FROM customers WHERE NOT EXISTS (SELECT 1 FROM accounts a WHERE a.customer_id = customers.id) ORDER BY id
SELECT id, name FROM customers WHERE EXISTS (SELECT 1 FROM accounts a WHERE a.customer_id = customers.id AND a.balance / 2 > customers.balance) ORDER BY id
SELECT id, name FROM customers WHERE score > (SELECT avg(score) FROM customers) ORDER BY id
SELECT id, name FROM customers WHERE score = (SELECT max(score) FROM customers) ORDER BY id
SELECT id, name FROM customers WHERE id < (SELECT min(customer_id) FROM accounts) ORDER BY id
SELECT id, name FROM customers WHERE name IN (SELECT lower(name) FROM customers) ORDER BY id
SELECT id, name FROM customers WHERE score > ALL (SELECT score FROM customers WHERE branch = '0007') ORDER BY id
SELECT id, name FROM customers WHERE id = ANY (SELECT customer_id FROM accounts WHERE kind = 'loan') ORDER BY id
SELECT id, name FROM customers WHERE branch || '-' || id::text = '0042-42' ORDER BY id
SELECT id, name FROM customers WHERE id::text LIKE '4%' ORDER BY id
SELECT id, name FROM customers WHERE balance::int > 3000 ORDER BY id
SELECT id, name FROM customers WHERE note ~ '^v' ORDER BY id
SELECT id, name FROM customers WHERE score IS DISTINCT FROM 10 ORDER BY id
SELECT id, name FROM customers WHERE (score > 20) = active ORDER BY id
SELECT id, name FROM customers WHERE true ORDER BY id
SELECT id, name FROM customers WHERE false ORDER BY id
SELECT id, name FROM customers WHERE 1 = 1 ORDER BY id
SELECT id, name FROM customers WHERE branch = '0042' AND id < 100 ORDER BY id
SELECT id, name FROM customers WHERE branch = '0007' AND id < 100 ORDER BY id
SELECT * FROM customers ORDER BY id
SELECT * FROM customers c WHERE c.id < 50 ORDER BY c.id
SELECT c.* FROM customers c ORDER BY c.id LIMIT 7
SELECT count(*) FROM customers
SELECT count(*), sum(score), avg(score), min(name), max(since), sum(balance) FROM customers
SELECT count(DISTINCT branch) FROM customers
SELECT branch, count(*) FROM customers GROUP BY branch ORDER BY branch
SELECT branch, active, count(*) FROM customers GROUP BY 1, 2 ORDER BY 1, 2
SELECT branch, avg(score) FROM customers GROUP BY branch HAVING count(*) > 3 ORDER BY branch
SELECT branch, sum(balance) AS total FROM customers GROUP BY branch HAVING sum(balance) > 100 ORDER BY total
SELECT DISTINCT branch FROM customers ORDER BY 1
SELECT DISTINCT ON (branch) branch, id FROM customers ORDER BY branch, id
SELECT id FROM customers ORDER BY balance DESC, id LIMIT 10 OFFSET 5
SELECT id, row_number() OVER (ORDER BY score DESC, id) FROM customers ORDER BY id
SELECT id, rank() OVER (PARTITION BY branch ORDER BY score) FROM customers ORDER BY id
SELECT id, sum(balance) OVER (ORDER BY id ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) FROM customers ORDER BY id
SELECT id, lag(name) OVER (ORDER BY id) FROM customers ORDER BY id
SELECT count(*) FILTER (WHERE active) FROM customers
SELECT string_agg(name, ',' ORDER BY id) FROM customers WHERE id < 60
SELECT array_agg(id ORDER BY id) FROM customers WHERE score > 80
SELECT c.id, a.id FROM customers c JOIN accounts a ON a.customer_id = c.id ORDER BY 1, 2
SELECT c.id, a.id FROM customers c LEFT JOIN accounts a ON a.customer_id = c.id ORDER BY 1, 2
SELECT c.id, a.id FROM customers c RIGHT JOIN accounts a ON a.customer_id = c.id ORDER BY 1, 2
SELECT c.id, a.id FROM customers c FULL JOIN accounts a ON a.customer_id = c.id ORDER BY 1, 2
SELECT c.id, a.id FROM customers c, accounts a WHERE a.customer_id = c.id AND a.balance > c.balance ORDER BY 1, 2
SELECT c.id, b.city FROM customers c JOIN branches b ON b.id = c.branch ORDER BY 1
SELECT b.id, count(c.id) FROM branches b LEFT JOIN customers c ON c.branch = b.id GROUP BY b.id ORDER BY 1
SELECT b.id FROM branches b LEFT JOIN customers c ON c.branch = b.id WHERE coalesce(lower(c.name), 'none') = 'none' ORDER BY 1
SELECT c.id FROM customers c JOIN accounts a ON lower(a.kind) = 'loan' AND a.customer_id = c.id ORDER BY 1
SELECT c.id, a.kind FROM customers c LEFT JOIN accounts a ON a.customer_id = c.id AND length(a.kind) > 4 ORDER BY 1, 2
SELECT id, branch FROM customers JOIN accounts USING (id, branch) ORDER BY 1
SELECT count(*) FROM customers JOIN accounts USING (branch)
SELECT branch, count(*) FROM customers LEFT JOIN accounts USING (id, branch) GROUP BY branch ORDER BY 1
SELECT count(*) FROM customers NATURAL JOIN branches
SELECT x.id FROM (SELECT id, score FROM customers WHERE active) x WHERE x.score > 50 ORDER BY 1
SELECT x.n FROM (SELECT lower(name) AS n FROM customers) x WHERE x.n LIKE 'a%' ORDER BY 1
SELECT x.r FROM (SELECT score / 2 AS r FROM customers) x WHERE x.r = 20
SELECT x.branch, x.n FROM (SELECT branch, count(*) AS n FROM customers GROUP BY branch) x WHERE x.n > 5 ORDER BY 1
SELECT x.id FROM (SELECT id, length(name) AS l FROM customers LIMIT 1000) x JOIN (VALUES (8), (9)) v(l) ON v.l = x.l ORDER BY 1
WITH c AS (SELECT id, score FROM customers) SELECT id FROM c WHERE score > 60 ORDER BY id
WITH c AS (SELECT id, lower(name) AS n FROM customers) SELECT n FROM c WHERE n > 'f' ORDER BY n
WITH c AS (SELECT * FROM customers), d AS (SELECT id FROM c WHERE active) SELECT count(*) FROM d
WITH customers AS (SELECT id FROM customers WHERE id < 100) SELECT count(*) FROM customers
WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT n FROM t ORDER BY n
WITH RECURSIVE t(id) AS (SELECT min(id) FROM customers UNION ALL SELECT t.id + 1 FROM t WHERE t.id < 30) SELECT count(*) FROM t JOIN customers c ON c.id = t.id
SELECT id FROM customers WHERE active UNION SELECT customer_id FROM accounts ORDER BY 1
SELECT id FROM customers UNION ALL SELECT id FROM accounts ORDER BY 1 LIMIT 20
SELECT id FROM customers INTERSECT SELECT customer_id FROM accounts ORDER BY 1
SELECT id FROM customers EXCEPT SELECT customer_id FROM accounts ORDER BY 1
(SELECT id FROM customers ORDER BY id LIMIT 3) UNION ALL (SELECT id FROM accounts ORDER BY id LIMIT 3) ORDER BY 1
SELECT c.id, t.total FROM customers c, LATERAL (SELECT sum(a.balance) AS total FROM accounts a WHERE a.customer_id = c.id) t ORDER BY 1
SELECT c.id, t.id FROM customers c CROSS JOIN LATERAL (SELECT a.id FROM accounts a WHERE a.customer_id = c.id ORDER BY a.balance DESC LIMIT 1) t ORDER BY 1
SELECT c.id, g FROM customers c, generate_series(1, 2) g WHERE c.id < 60 ORDER BY 1, 2
SELECT id, (SELECT count(*) FROM accounts a WHERE a.customer_id = c.id) FROM customers c ORDER BY id
SELECT id, (SELECT max(balance) FROM accounts a WHERE a.customer_id = c.id AND a.branch <> c.branch) FROM customers c ORDER BY id
SELECT id, EXISTS (SELECT 1 FROM accounts a WHERE a.customer_id = c.id) FROM customers c ORDER BY id
SELECT id, ARRAY(SELECT a.id FROM accounts a WHERE a.customer_id = c.id ORDER BY 1) FROM customers c ORDER BY id
SELECT c1.id, c2.id FROM customers c1 JOIN customers c2 ON c1.score = c2.score AND c1.id < c2.id ORDER BY 1, 2
SELECT branch, sum(score) FROM customers GROUP BY ROLLUP (branch) ORDER BY 1
SELECT branch, active, count(*) FROM customers GROUP BY GROUPING SETS ((branch), (active), ()) ORDER BY 1, 2, 3
SELECT upper(branch) AS b, count(*) FROM customers GROUP BY upper(branch) ORDER BY b
SELECT id, CASE WHEN score > 50 THEN 'high' ELSE 'low' END AS level FROM customers ORDER BY id
SELECT id, balance::int, since::text, score::numeric FROM customers ORDER BY id
SELECT id, to_char(since, 'YYYY-MM') FROM customers ORDER BY id
SELECT id, round(balance, 1), abs(score), mod(id, 7) FROM customers ORDER BY id
SELECT id, name || ' (' || branch || ')' FROM customers ORDER BY id
SELECT id, note IS NULL, active IS TRUE FROM customers ORDER BY id
SELECT public.customers.id FROM public.customers ORDER BY 1
SELECT customers.id FROM customers WHERE customers.score > 20 ORDER BY customers.id
SELECT z FROM customers AS c(y, z) ORDER BY z LIMIT 5
SELECT "id" FROM "public"."customers" ORDER BY 1
TABLE branches
SELECT * FROM branches ORDER BY id
VALUES (1, 'a'), (2, 'b')
SELECT 1
SELECT 1 + 1 AS two, 'x' AS x, NULL AS n, true AS t
SELECT current_date IS NOT NULL
SELECT id FROM customers FETCH FIRST 3 ROWS ONLY
SELECT id FROM customers WHERE id = 42
SELECT id FROM customers WHERE id = 42 AND lower(name) LIKE '%'
SELECT a.id FROM accounts a WHERE a.customer_id = 42 ORDER BY 1
SELECT kind, count(*), sum(balance) FROM accounts GROUP BY kind ORDER BY kind
SELECT a.kind, c.branch, count(*) FROM accounts a JOIN customers c ON c.id = a.customer_id GROUP BY a.kind, c.branch ORDER BY 1, 2
SELECT c.name FROM customers c WHERE c.id IN (SELECT a.customer_id FROM accounts a WHERE a.opened > c.since) ORDER BY 1
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY score) FROM customers
SELECT 1 / (id - 7) FROM customers WHERE id > 500
SELECT id FROM customers WHERE 1 / (id - 1) > -5 ORDER BY id
SELECT id FROM customers WHERE (name || 'x')::text <> '' AND 1 / (score - 999) < 5 ORDER BY id
SELECT id FROM accounts WHERE 1 / (customer_id - 1) >= 0 ORDER BY id
SELECT mode() WITHIN GROUP (ORDER BY branch) FROM customers
SELECT id FROM customers WHERE id BETWEEN 10 AND 90 AND name LIKE 'A%' ORDER BY id
SELECT c.id FROM customers c WHERE (SELECT count(*) FROM accounts a WHERE a.customer_id = c.id) > 1 ORDER BY 1
SELECT c.id FROM customers c LEFT JOIN accounts a ON a.customer_id = c.id WHERE a.id IS NULL ORDER BY 1
SELECT c.id FROM customers c WHERE c.score IN (SELECT a.id % 100 FROM accounts a WHERE a.balance > 100) ORDER BY 1
SELECT id FROM customers WHERE id = 42 FOR UPDATE
SELECT id FROM customers WHERE lower(name) LIKE 'b%' ORDER BY id LIMIT 3 FOR SHARE
SELECT count(*) FROM (SELECT 1 FROM customers) x
SELECT score <> 6 AS other FROM customers GROUP BY 1 HAVING score <> 6 ORDER BY 1
SELECT DISTINCT score = 6 FROM customers ORDER BY score = 6
SELECT count(*) FROM generate_series(1, 9) a(n) NATURAL JOIN generate_series(4, 20) b(n) JOIN customers c ON c.id = n
SELECT c.id, w.total FROM customers c JOIN LATERAL (SELECT sum(c.score) OVER (ORDER BY a.id) AS total FROM accounts a WHERE a.customer_id = c.id) w ON true ORDER BY 1, 2
SELECT row_to_json(b) FROM branches b ORDER BY id
SELECT json_agg(c ORDER BY id) FROM customers c WHERE score > 50
SELECT c.id, a FROM customers c LEFT JOIN accounts a ON a.customer_id = c.id AND a.kind = 'loan' ORDER BY c.id, a.id
SELECT count(c), count(c.*) FROM customers c
SELECT x FROM (SELECT id, name FROM customers WHERE active) x ORDER BY x
SELECT to_jsonb(c) ->> 'name' FROM customers c WHERE c::text LIKE '%Abel%' ORDER BY 1
SELECT DISTINCT row_to_json(x)::text FROM (SELECT branch, note FROM customers) x ORDER BY 1
SELECT c IS NULL, c IS NOT NULL, count(*) FROM customers c GROUP BY 1, 2 ORDER BY 1, 2
SELECT (SELECT a FROM accounts a WHERE a.customer_id = c.id ORDER BY id LIMIT 1) FROM customers c ORDER BY c.id
