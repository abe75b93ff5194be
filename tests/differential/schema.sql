-- The agent is tenant a.  Of each table it may see the rows that the filters in world.py let through: ids below 1000,
-- names and codes without "hid".  Every other row is marked, so that a value of it is known wherever it turns up.
CREATE TYPE mood AS ENUM ('low', 'mid', 'high');
CREATE DOMAIN code AS text CHECK (VALUE <> '');
CREATE TABLE regions(id int PRIMARY KEY, name text, score int);
CREATE TABLE customers(id int PRIMARY KEY, tenant text, region_id int REFERENCES regions, name text NOT NULL, level mood,
                       score int CHECK (score < 1000), amount numeric(12,2), day date, seen timestamptz, tags text[],
                       data jsonb, active bool DEFAULT true, code code);
CREATE TABLE accounts(id int PRIMARY KEY, tenant text, customer_id int, kind text, amount numeric(12,2) DEFAULT 0, day date,
                      active bool, rate float8, parts int[]);
CREATE TABLE cards(id int PRIMARY KEY, tenant text, customer_id int REFERENCES customers, name text, active bool, score int,
                   UNIQUE (tenant, score));
CREATE TABLE events(id int, tenant text, account_id int, name text, score int, seen timestamptz) PARTITION BY LIST (tenant);
CREATE TABLE events_a PARTITION OF events FOR VALUES IN ('a');
CREATE TABLE events_b PARTITION OF events FOR VALUES IN ('b');
CREATE TABLE events_rest PARTITION OF events DEFAULT;
CREATE TABLE ledger(id int, tenant text, customer_id int, day date, amount numeric(12,2), name text, PRIMARY KEY (id, day))
  PARTITION BY RANGE (day);
CREATE TABLE ledger_1 PARTITION OF ledger FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
CREATE TABLE ledger_2 PARTITION OF ledger FOR VALUES FROM ('2020-02-01') TO ('2021-01-01');
CREATE TABLE things(id int PRIMARY KEY, tenant text, name text, weight bigint, amount numeric(12,2));
CREATE TABLE heavy(extra int) INHERITS (things);
CREATE INDEX ON customers(tenant);
CREATE INDEX ON customers(score);
CREATE INDEX ON accounts(customer_id);
CREATE INDEX ON events(id);
CREATE VIEW active_customers WITH (security_invoker) AS SELECT id, tenant, name, level, score FROM customers WHERE active;
CREATE VIEW totals WITH (security_invoker) AS
  SELECT tenant, count(*) AS n, max(score) AS score, max(name) AS name FROM customers GROUP BY tenant;
-- Cheaper than any comparison, so that the planner runs them first wherever it may.  Only what is hidden is reported.
CREATE FUNCTION leak(int) RETURNS int LANGUAGE plpgsql STABLE COST 0.0000001
  AS $$ BEGIN IF $1 >= 1000 THEN RAISE LOG 'leak:%', $1; END IF; RETURN $1; END $$;
CREATE FUNCTION leak(text) RETURNS text LANGUAGE plpgsql STABLE COST 0.0000001
  AS $$ BEGIN IF $1 LIKE '%hid%' THEN RAISE LOG 'leak:%', $1; END IF; RETURN $1; END $$;
CREATE FUNCTION sees(int) RETURNS bool LANGUAGE plpgsql STABLE COST 0.0000001
  AS $$ BEGIN IF $1 >= 1000 THEN RAISE LOG 'leak:%', $1; END IF; RETURN $1 % 3 > 0; END $$;
CREATE FUNCTION sees(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE COST 0.0000001
  AS $$ BEGIN IF $1 LIKE '%hid%' THEN RAISE LOG 'leak:%', $1; END IF; RETURN $1 > 'b'; END $$;
CREATE FUNCTION watches(int) RETURNS bool LANGUAGE plpgsql VOLATILE COST 0.0000001
  AS $$ BEGIN IF $1 >= 1000 THEN RAISE LOG 'leak:%', $1; END IF; RETURN $1 % 2 > 0; END $$;

-- Number i: rows 1 to 12 are the agent's, the others belong to b, c or nobody.
CREATE TEMP TABLE seed AS
SELECT i, i <= 12 AS own, CASE WHEN i <= 12 THEN i ELSE 1000 + i END AS id,
       CASE WHEN i <= 12 THEN 'a' WHEN i % 3 = 0 THEN 'b' WHEN i % 3 = 1 THEN 'c' END AS tenant,
       CASE WHEN i <= 12 THEN 'ann ' || i ELSE 'hid ' || i END AS name
FROM generate_series(1, 36) i;
INSERT INTO regions VALUES (1, 'north', 1), (2, 'south', 2), (3, 'east', NULL), (4, 'none', 4);
INSERT INTO customers
SELECT id, tenant, CASE WHEN i % 5 > 0 THEN 1 + i % 3 END, name, (ARRAY['low', 'mid', 'high', NULL])[1 + i % 4]::mood,
       CASE WHEN i % 7 > 0 THEN i % 6 END, CASE WHEN i % 8 > 0 THEN (i * 37 % 900) / 4.0 END, date '2020-01-01' + i % 40,
       timestamptz '2020-01-01 12:00:00+00' + i % 9 * interval '7 hours',
       CASE i % 4 WHEN 0 THEN NULL WHEN 1 THEN '{}' ELSE ARRAY['t' || i % 3, 't' || i % 5] END,
       CASE WHEN i % 6 > 0 THEN jsonb_build_object('k', 'v' || i % 3, 'n', CASE WHEN own THEN (i % 4)::text ELSE 'hid' END,
                                                   'list', jsonb_build_array(i % 3, i % 2)) END,
       CASE WHEN i % 9 > 0 THEN i % 2 = 0 END, CASE WHEN i % 10 > 0 THEN CASE WHEN own THEN i::text ELSE 'hid' || i END END
FROM seed;
INSERT INTO accounts
SELECT id, tenant, CASE WHEN i % 6 = 0 THEN NULL WHEN i % 5 = 0 THEN 1000 + i ELSE 1 + i * 5 % 12 END,
       (ARRAY['loan', 'giro', 'hidden', NULL])[CASE WHEN own THEN 1 + i % 2 ELSE 1 + i % 4 END],
       CASE WHEN i % 7 > 0 THEN i * 11 % 300 END, date '2020-01-05' + i % 50, i % 3 = 0, i % 8 / 4.0,
       CASE WHEN i % 5 > 0 THEN ARRAY[i % 3, i % 4, NULL] END
FROM seed;
INSERT INTO cards
SELECT id, tenant, CASE WHEN i % 6 > 0 THEN CASE WHEN own THEN 1 + i * 7 % 12 ELSE 1013 + i * 7 % 24 END END, name,
       own AND i % 2 = 0, i FROM seed;
INSERT INTO cards SELECT 600 + i, 'b', NULL, 'shared ' || i, true, 100 + i FROM generate_series(1, 3) i;
INSERT INTO events
SELECT id, tenant, CASE WHEN i % 4 > 0 THEN 1 + i * 3 % 12 END, name, i % 5,
       timestamptz '2020-01-03 00:00:00+00' + i * interval '1 hour'
FROM seed;
INSERT INTO ledger SELECT id, tenant, 1 + i * 5 % 12, date '2020-01-10' + i, i * 3 % 100, name FROM seed;
INSERT INTO things SELECT id, tenant, name, CASE WHEN i % 5 > 0 THEN i END, i % 4 FROM seed WHERE i % 2 = 0;
UPDATE things SET id = 1000 + id, name = 'hid ' || id WHERE weight IS NULL AND id < 1000;
INSERT INTO heavy SELECT id, CASE WHEN i % 4 = 1 AND own THEN 'a2' ELSE tenant END, name, 3 + i % 5, i % 4, i % 3
FROM seed WHERE i % 2 = 1;
UPDATE heavy SET id = 1000 + id, weight = -1, name = 'hid' WHERE id = 7;
DROP TABLE seed;
