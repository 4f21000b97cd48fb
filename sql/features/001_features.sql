-- Features, ordered by the time at which they were known (docs/features.md, docs/adr/0034).
--
-- A source is a table of events. A row of a source of kind `totals` holds the totals of its entity up to then, so that a window is
-- the difference of two rows, and a correction is one more event. A row of a source of kind `values` holds the newest values that
-- were known then. A feature view is a SQL function that Postgres inlines: training sets and look-ups call the same one.
--
-- The scoring service's role only reads the tables. What it changes, it changes by the functions that run with their owner's rights.

CREATE TABLE features.sources (
    name text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('totals', 'values')),
    keys text[] NOT NULL,
    columns text[] NOT NULL, -- of totals: n, the number of events, and then those that were declared
    types text[] NOT NULL
);
-- Every definition that was applied; the one that was applied last is current.
CREATE TABLE features.views (
    name text,
    hash text,
    keys text[] NOT NULL,
    columns text[] NOT NULL,
    types text[] NOT NULL,
    definition text NOT NULL,
    applied timestamptz NOT NULL,
    PRIMARY KEY (name, hash)
);

-- An event is known this long after its transaction began. That transaction ends within 400 ms, and its commit has the rest of the
-- time to be written: so an event is visible before it is known. Known at now(), it would be missing in look-ups that were made
-- before it was committed, and in training sets it would be there.
CREATE FUNCTION features.lead() RETURNS interval LANGUAGE sql IMMUTABLE AS $$ SELECT interval '1 second' $$;

CREATE FUNCTION features.table_of(source text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT format('features.%I', 'events_' || source) $$;

-- Names, and their types where the pattern has two places, as a list of SQL.
CREATE FUNCTION features.listed(pattern text, names text[], types text[] DEFAULT NULL) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT string_agg(format(pattern, name, type), ', ' ORDER BY position)
    FROM unnest(names, coalesce(types, names)) WITH ORDINALITY AS listed (name, type, position)
$$;

CREATE FUNCTION features.require(holds boolean, complaint text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF holds IS NOT TRUE THEN
        RAISE EXCEPTION '%', complaint USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;

-- What a declaration may consist of. It is quoted besides.
CREATE FUNCTION features.require_names(name text, keys text[], columns text[], types text[]) RETURNS void LANGUAGE sql AS $$
    SELECT features.require(
        bool_and(word ~ '^[a-z][a-z0-9_]{0,39}$'), 'a name has up to 40 lower-case letters, digits and _, and starts with a letter')
    FROM unnest(name || keys || columns) AS word;
    SELECT features.require(
        count(DISTINCT word) = count(*) AND NOT bool_or(word IN ('at', 'known_at', 'event_time', 'n')),
        'keys and columns have names of their own, other than at, known_at, event_time and n')
    FROM unnest(keys || columns) AS word;
    SELECT features.require(
        types <@ ARRAY['bigint', 'double precision', 'text', 'boolean'] AND cardinality(types) = cardinality(columns),
        'each column has a type: bigint, double precision, text or boolean');
    SELECT features.require(cardinality(keys) BETWEEN 1 AND 8 AND cardinality(columns) BETWEEN 1 AND 200,
        'there are 1 to 8 keys and 1 to 200 columns');
$$;

-- A source and its table. The same declaration again changes nothing.
CREATE FUNCTION features.create_source(source text, source_kind text, source_keys text[], names text[], source_types text[])
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored features.sources;
BEGIN
    PERFORM features.require_names(source, source_keys, names, source_types);
    IF source_kind = 'totals' THEN
        PERFORM features.require(source_types <@ ARRAY['bigint'], 'totals are of type bigint: sums of fractions are not exact');
        names := 'n'::text || names;
        source_types := 'bigint'::text || source_types;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('source'), hashtext(source));
    SELECT * INTO stored FROM features.sources WHERE name = source;
    IF FOUND THEN
        PERFORM features.require(stored = ROW(source, source_kind, source_keys, names, source_types)::features.sources,
            format('the source %s exists with another declaration, and its events cannot be converted', source));
        RETURN;
    END IF;
    INSERT INTO features.sources VALUES (source, source_kind, source_keys, names, source_types);
    EXECUTE format('CREATE TABLE %s (%s, known_at timestamptz, event_time timestamptz NOT NULL, %s, PRIMARY KEY (%s, known_at))',
        features.table_of(source), features.listed('%I text COLLATE "C"', source_keys),
        features.listed(CASE source_kind WHEN 'totals' THEN '%I %s NOT NULL' ELSE '%I %s' END, names, source_types),
        features.listed('%I', source_keys));
    EXECUTE format('GRANT SELECT ON %s TO %I', features.table_of(source), session_user);
END $$;

CREATE FUNCTION features.source(source text) RETURNS features.sources LANGUAGE plpgsql STABLE AS $$
DECLARE
    stored features.sources;
BEGIN
    SELECT * INTO stored FROM features.sources WHERE name = source;
    PERFORM features.require(FOUND, format('there is no source %s', source));
    RETURN stored;
END $$;

-- The newest stored row of each entity in `given`.
CREATE FUNCTION features.latest_of_given(stored features.sources) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('SELECT latest.* FROM (SELECT DISTINCT %1$s FROM given) entities CROSS JOIN LATERAL (
            SELECT * FROM %2$s stored WHERE (%3$s) = (%4$s) ORDER BY known_at DESC LIMIT 1) latest',
        features.listed('%I', stored.keys), features.table_of(stored.name), features.listed('stored.%I', stored.keys),
        features.listed('entities.%I', stored.keys))
$$;

-- The statement that adds the rows of `given`, a query with a known_at, to what their entities have: totals are added up; of values,
-- those of an event that is older than one known before are left out. It returns how many rows it added, and when the last is known.
CREATE FUNCTION features.adding(stored features.sources, given text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format(
        CASE stored.kind WHEN 'totals' THEN
            'WITH given AS MATERIALIZED (%8$s), latest AS MATERIALIZED (%9$s), added AS (
                INSERT INTO %1$s (%2$s, known_at, event_time, %3$s)
                SELECT %4$s, given.known_at, given.event_time, %5$s
                FROM (SELECT %2$s, known_at, max(event_time) AS event_time, %6$s FROM given GROUP BY %2$s, known_at) given
                LEFT JOIN latest USING (%2$s)
                WINDOW earlier AS (PARTITION BY %4$s ORDER BY given.known_at)
                RETURNING 1)
            SELECT (SELECT count(*) FROM added), max(known_at) FROM given'
        ELSE
            'WITH given AS MATERIALIZED (%8$s), latest AS MATERIALIZED (%9$s), added AS (
                INSERT INTO %1$s (%2$s, known_at, event_time, %3$s)
                SELECT %2$s, known_at, event_time, %3$s FROM (
                    SELECT given.*, latest.event_time AS stored_time, max(given.event_time) OVER (
                        PARTITION BY %4$s ORDER BY given.known_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS given_time
                    FROM (SELECT DISTINCT ON (%2$s, known_at) * FROM given ORDER BY %2$s, known_at, event_time DESC) given
                    LEFT JOIN latest USING (%2$s)) given
                WHERE event_time >= coalesce(greatest(stored_time, given_time), ''-infinity'')
                RETURNING 1)
            SELECT (SELECT count(*) FROM added), max(known_at) FROM given'
        END,
        features.table_of(stored.name), features.listed('%I', stored.keys), features.listed('%I', stored.columns),
        features.listed('given.%I', stored.keys),
        features.listed('coalesce(latest.%1$I, 0) + sum(given.%1$I) OVER earlier', stored.columns),
        features.listed('sum(%1$I) AS %1$I', stored.columns), features.listed('stored.%I', stored.keys), given,
        features.latest_of_given(stored))
$$;

-- Events of now, as a list of objects. Of one entity, writers take turns. Returns when the last of them is known.
CREATE FUNCTION features.append(source text, events jsonb) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored features.sources := features.source(source);
    added bigint;
    known timestamptz;
BEGIN
    PERFORM features.require(setting::int BETWEEN 1 AND 400, 'events are appended with a transaction_timeout of at most 400 ms')
    FROM pg_settings WHERE name = 'transaction_timeout';
    EXECUTE format('SELECT count(pg_advisory_xact_lock(hashtext($2), entity)::text) FROM (
            SELECT DISTINCT hashtext(concat_ws(chr(31), %1$s)) AS entity
            FROM jsonb_to_recordset($1) AS given (%2$s) ORDER BY entity OFFSET 0) entities',
        features.listed('%I', stored.keys), features.listed('%I text', stored.keys)) USING events, source;
    EXECUTE features.adding(stored, format('SELECT %3$s, given.event_time, %4$s,
                greatest($2, latest.known_at + interval ''1 microsecond'')
                + interval ''1 microsecond'' * (row_number() OVER (PARTITION BY %3$s ORDER BY position) - 1) AS known_at
            FROM ROWS FROM (jsonb_to_recordset($1) AS (%5$s, event_time timestamptz, %6$s))
                WITH ORDINALITY AS given (%1$s, event_time, %2$s, position)
            LEFT JOIN LATERAL (SELECT known_at FROM %7$s stored WHERE (%8$s) = (%3$s) ORDER BY known_at DESC LIMIT 1) latest ON true',
        features.listed('%I', stored.keys), features.listed('%I', stored.columns), features.listed('given.%I', stored.keys),
        features.listed('given.%I', stored.columns), features.listed('%I text', stored.keys),
        features.listed('%I %s', stored.columns, stored.types), features.table_of(source), features.listed('stored.%I', stored.keys)))
    INTO added, known USING events, now() + features.lead();
    RETURN known;
END $$;

-- A table for the rows of one transaction, which copies them there. No other transaction sees it, nor does a backup.
CREATE FUNCTION features.create_staged(columns text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    staged text := format('features.staged_%s', pg_backend_pid());
BEGIN
    EXECUTE format('CREATE UNLOGGED TABLE %s (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, %s)', staged, columns);
    EXECUTE format('GRANT INSERT, SELECT ON %s TO %I', staged, session_user);
    RETURN staged;
END $$;

-- Events of the past are copied into the table that this function names, with the time at which each was known.
CREATE FUNCTION features.begin_backfill(source text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored features.sources := features.source(source);
BEGIN
    RETURN features.create_staged(format('%s, known_at timestamptz NOT NULL, event_time timestamptz NOT NULL, %s',
        features.listed('%I text NOT NULL', stored.keys), features.listed('%I %s', stored.columns, stored.types)));
END $$;

-- Then they are added, while no other event is.
CREATE FUNCTION features.end_backfill(source text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored features.sources := features.source(source);
    staged text := format('features.staged_%s', pg_backend_pid());
    is_future boolean;
    is_late boolean;
    added bigint;
BEGIN
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', features.table_of(source));
    EXECUTE 'ANALYZE ' || staged;
    EXECUTE format('SELECT max(known_at) > now() FROM %s', staged) INTO is_future;
    PERFORM features.require(is_future IS NOT TRUE, 'an event is known in the future');
    EXECUTE format('SELECT EXISTS (
            SELECT FROM (SELECT %1$s, min(known_at) AS first FROM %5$s GROUP BY %1$s) given
            WHERE first <= (SELECT max(known_at) FROM %2$s stored WHERE (%3$s) = (%4$s)))',
        features.listed('%I', stored.keys), features.table_of(source), features.listed('stored.%I', stored.keys),
        features.listed('given.%I', stored.keys), staged) INTO is_late;
    PERFORM features.require(NOT is_late,
        'an entity has events that were known later: what was known cannot change, append a correction instead');
    EXECUTE features.adding(stored, 'SELECT * FROM ' || staged) INTO added;
    EXECUTE 'DROP TABLE ' || staged;
    EXECUTE 'ANALYZE ' || features.table_of(source);
    RETURN added;
END $$;

-- The rows of a training set, its spine: each with its keys and its time. They are copied into the table that this function names,
-- and the transaction is rolled back at its end.
CREATE FUNCTION features.begin_spine(keys text[]) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN features.create_staged(format('%s, at timestamptz NOT NULL', features.listed('%I text', keys)));
END $$;

CREATE FUNCTION features.end_spine() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    staged text := format('features.staged_%s', pg_backend_pid());
    is_future boolean;
BEGIN
    EXECUTE 'ANALYZE ' || staged;
    EXECUTE format('SELECT max(at) > now() FROM %s', staged) INTO is_future;
    PERFORM features.require(is_future IS NOT TRUE, 'a time is in the future: what will be known by then is not known yet');
END $$;

-- A feature view: one SELECT that returns one row for its keys ($1, $2, ...) and a time (the parameter after them). A definition
-- keeps its function for ever, named by its hash, so that a model gets the features that it was trained with.
CREATE FUNCTION features.create_view(view text, view_keys text[], names text[], view_types text[], body text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    declared text := format('(%s, at timestamptz) RETURNS TABLE (%s)',
        features.listed('%I text', view_keys), features.listed('%I %s', names, view_types));
    digest text := left(encode(sha256(convert_to(declared || body, 'UTF8')), 'hex'), 12);
    line text;
BEGIN
    PERFORM features.require_names(view, view_keys, names, view_types);
    EXECUTE format('CREATE OR REPLACE FUNCTION features.%I %s LANGUAGE sql STABLE PARALLEL SAFE AS %L', view || '_' || digest, declared, body);
    FOR line IN EXECUTE format('EXPLAIN SELECT given.* FROM (VALUES (%s, now())) spine (%s, at), LATERAL features.%I(%s, at) given',
        features.listed('NULL::text', view_keys), features.listed('%I', view_keys), view || '_' || digest, features.listed('%I', view_keys))
    LOOP
        PERFORM features.require(line !~ ('Function Scan on ' || view || '_'), 'the SQL is not one SELECT that Postgres can inline');
    END LOOP;
    INSERT INTO features.views VALUES (view, digest, view_keys, names, view_types, body, clock_timestamp())
    ON CONFLICT (name, hash) DO UPDATE SET applied = excluded.applied;
    RETURN digest;
END $$;
