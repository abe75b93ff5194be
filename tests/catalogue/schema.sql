-- The catalogue's fixture.  Agent A may see the rows of branch 0042 (ids 1 to 20); those of branch 0007 are hidden.
CREATE TABLE branches(id text PRIMARY KEY, city text);
CREATE TABLE people(id int PRIMARY KEY, branch text, name text, ssn text UNIQUE, card text, email text, pin int,
                    note text, score int, amount numeric, opened date);
CREATE TABLE accounts(id int PRIMARY KEY, person_id int, branch text, kind text, balance numeric, owner_ssn text);
CREATE TABLE secrets(id int, ssn text);
CREATE TABLE kid(extra text) INHERITS (people);
CREATE TABLE part(id int, branch text, note text) PARTITION BY LIST (branch);
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN ('0042');
CREATE TABLE part_2 PARTITION OF part FOR VALUES IN ('0007');
CREATE TABLE "People"(id int);
CREATE TABLE old_prices(branch text, price int);
CREATE TABLE fkc(id int, branch text, ssn text REFERENCES people(ssn));
CREATE TABLE checked(id int PRIMARY KEY, branch text, note text NOT NULL CHECK (note <> 'forbidden'));
CREATE TABLE watched(id int, branch text);
CREATE TABLE ruled(id int, branch text);
CREATE TABLE derived(id int PRIMARY KEY, branch text, email text,
                     mail text GENERATED ALWAYS AS (lower(email)) STORED,
                     mail2 text DEFAULT 'none');
CREATE TABLE contacts(id int, branch text, email text UNIQUE);
CREATE TABLE letters(id int, branch text, receiver text REFERENCES contacts(email));
CREATE TABLE drift(id int PRIMARY KEY, branch text, name text, email text);
CREATE TABLE loose(id int, branch text, note text);
CREATE TABLE swap(id int PRIMARY KEY, branch text, name text);
CREATE VIEW v AS SELECT id, branch, name, ssn, note FROM people;
CREATE VIEW all_notes AS SELECT id, note FROM people WHERE branch = '0042';
CREATE VIEW kinds AS SELECT id, kind FROM accounts WHERE branch = '0042';
CREATE MATERIALIZED VIEW mv AS SELECT * FROM people;
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE ft(id int, branch text) SERVER nowhere;
CREATE SEQUENCE counter;
CREATE DOMAIN amounts AS numeric CHECK (VALUE > 0);
CREATE DOMAIN present AS text NOT NULL;
CREATE TYPE pair AS (a int, b text);
CREATE TYPE hidden_mood AS ENUM ('good');
CREATE FUNCTION leak(int) RETURNS int LANGUAGE plpgsql STABLE COST 0.0000001
  AS $$ BEGIN RAISE WARNING 'leak:%', $1; RETURN $1; END $$;
CREATE FUNCTION leak(text) RETURNS text LANGUAGE plpgsql STABLE COST 0.0000001
  AS $$ BEGIN RAISE WARNING 'leak:%', $1; RETURN $1; END $$;
CREATE FUNCTION raises(code text, relation text, field text, name text) RETURNS int LANGUAGE plpgsql
  AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = code, MESSAGE = 'hidden words', DETAIL = 'hidden words',
        HINT = 'hidden words', SCHEMA = 'public', TABLE = relation, COLUMN = field, CONSTRAINT = name,
        DATATYPE = 'hidden_mood'; END $$;
CREATE FUNCTION sets(int) RETURNS SETOF int LANGUAGE sql STABLE COST 0.0000001 AS 'SELECT public.leak($1)';
CREATE FUNCTION turns(text, text) RETURNS text LANGUAGE sql AS $$ SELECT pg_catalog.set_config($1, $2, false) $$;
CREATE FUNCTION sd() RETURNS SETOF people LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM people';
CREATE FUNCTION spy(people) RETURNS text LANGUAGE sql AS 'SELECT $1.ssn';
CREATE FUNCTION redefined(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION louder(int, int) RETURNS bool LANGUAGE plpgsql
  AS $$ BEGIN RAISE WARNING 'leak:%', $1; RETURN $1 < $2; END $$;
CREATE OPERATOR <<< (LEFTARG = int, RIGHTARG = int, FUNCTION = louder);
CREATE FUNCTION copies() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER copies BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION copies();
CREATE RULE elsewhere AS ON INSERT TO ruled DO ALSO INSERT INTO secrets VALUES (NEW.id, 'x');
CREATE SCHEMA evil;
CREATE TABLE evil.people(id int, name text);
INSERT INTO evil.people VALUES (1, 'hidden in evil');
CREATE FUNCTION evil.always(text, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.always);
CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT 'hidden'::text $$;

INSERT INTO branches VALUES ('0042', 'Bern'), ('0007', 'Rome');
INSERT INTO secrets SELECT i, 'hidden-value' FROM generate_series(1, 5) i;
INSERT INTO part SELECT i, CASE WHEN i <= 3 THEN '0042' ELSE '0007' END, CASE WHEN i <= 3 THEN 'seen' ELSE 'hidden-value' END
FROM generate_series(1, 6) i;
INSERT INTO checked SELECT i, CASE WHEN i <= 3 THEN '0042' ELSE '0007' END, CASE WHEN i <= 3 THEN 'seen' ELSE 'hidden-value' END
FROM generate_series(1, 6) i;
INSERT INTO derived SELECT i, CASE WHEN i <= 3 THEN '0042' ELSE '0007' END, 'Clear' || i || '@bank.example'
FROM generate_series(1, 6) i;
INSERT INTO contacts SELECT i, CASE WHEN i <= 3 THEN '0042' ELSE '0007' END, 'clear' || i || '@bank.example'
FROM generate_series(1, 6) i;
INSERT INTO drift SELECT i, CASE WHEN i <= 3 THEN '0042' ELSE '0007' END, CASE WHEN i <= 3 THEN 'seen' ELSE 'hidden-value' END,
       'clear' || i || '@bank.example' FROM generate_series(1, 6) i;
INSERT INTO loose SELECT i, CASE WHEN i <= 3 THEN '0042' ELSE '0007' END, CASE WHEN i <= 3 THEN 'seen' ELSE 'hidden-value' END
FROM generate_series(1, 6) i;
INSERT INTO swap SELECT i, CASE WHEN i <= 3 THEN '0042' ELSE '0007' END, CASE WHEN i <= 3 THEN 'seen' ELSE 'hidden-value' END
FROM generate_series(1, 6) i;
INSERT INTO kid(id, branch, name, ssn, note) VALUES (777, '0007', 'hidden kid', NULL, 'hidden-secret');
