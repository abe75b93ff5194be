INSERT INTO customers (id, branch, name, score, balance, since, active) VALUES (9001, '0042', 'New One', 1, 2.5, '2024-01-01', true) RETURNING id, branch
INSERT INTO customers (id, branch, name, score, balance, since, active) VALUES (9002, '0007', 'Other', 1, 2.5, '2024-01-01', true)
INSERT INTO customers (id, branch, name, score, balance, since, active) VALUES (9003, NULL, 'None', 1, 2.5, '2024-01-01', true)
INSERT INTO customers (id, branch, name, score, balance, since, active) VALUES (9004, '0042', 'A', 1, 1, '2024-01-01', true), (9005, '0007', 'B', 1, 1, '2024-01-01', true)
INSERT INTO customers (id, branch, name, score, balance, since, active) SELECT id + 10000, branch, name, score, balance, since, active FROM customers WHERE id < 100
INSERT INTO customers (id, branch, name, score, balance, since, active) SELECT 20000, '0007', name, 1, 1, since, active FROM customers WHERE id = 42
UPDATE customers SET score = score + 1 WHERE id < 100
UPDATE customers SET score = 0
UPDATE customers SET name = upper(name) WHERE lower(name) LIKE 'a%' RETURNING id, name
UPDATE customers SET branch = '0007' WHERE id = 42
UPDATE customers SET branch = '0042' WHERE id = 42
UPDATE customers SET note = NULL WHERE note = 'vip' RETURNING id
UPDATE customers SET balance = a.balance FROM accounts a WHERE a.customer_id = customers.id AND a.kind = 'loan'
UPDATE customers c SET score = 5 WHERE c.id IN (SELECT customer_id FROM accounts WHERE balance > 5000) RETURNING c.id
UPDATE customers SET score = 7 WHERE 1 / (id - 7) > -10
UPDATE accounts SET balance = balance + 1 WHERE customer_id = 42 RETURNING *
DELETE FROM accounts WHERE id = 10
DELETE FROM accounts
DELETE FROM accounts WHERE lower(kind) = 'loan' RETURNING id, kind
DELETE FROM accounts USING customers WHERE accounts.customer_id = customers.id AND customers.score > 50
DELETE FROM accounts a WHERE NOT EXISTS (SELECT 1 FROM customers c WHERE c.id = a.customer_id)
DELETE FROM customers WHERE id = 43 OR true
INSERT INTO customers VALUES (9010, '0042', 'Positional', 3, 4, '2024-02-02', false, 'n') RETURNING *
INSERT INTO customers (id, branch, name, score, balance, since, active) VALUES (42, '0042', 'Dup', 1, 1, '2024-01-01', true)
UPDATE customers SET score = (SELECT max(score) FROM customers) WHERE id = 42 RETURNING score
UPDATE customers SET name = DEFAULT WHERE id = 42
INSERT INTO customers (id, branch, name) VALUES (42, '0007', 'x') ON CONFLICT (id) DO UPDATE SET name = 'y'
INSERT INTO customers (id) VALUES (42) ON CONFLICT (id) DO UPDATE SET score = 1 WHERE excluded.score IS NULL
INSERT INTO customers (id, branch, score) VALUES (42, '0042', 8) ON CONFLICT (id) DO UPDATE SET score = excluded.score RETURNING id, score
