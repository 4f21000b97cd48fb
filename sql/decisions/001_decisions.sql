-- What the scoring service answered. One row for each scored row of a request: (request, row) identifies it.
-- Times in `time` are those of the answer; a request's id is a UUIDv7, which begins with the time of its arrival.
CREATE TABLE serving.decisions (
    time           timestamptz NOT NULL,
    request        uuid        NOT NULL,
    row            integer     NOT NULL,
    model          text        NOT NULL,
    version        text        NOT NULL,
    role           text        NOT NULL,
    policy_version integer,
    client         text        NOT NULL,
    entity         text,
    features       jsonb       NOT NULL,
    score          jsonb       NOT NULL,
    lower_bound    double precision,
    upper_bound    double precision,
    decision       text,
    latency_ms     real        NOT NULL,
    deployment     uuid,
    PRIMARY KEY (request, row, role, time)
) PARTITION BY RANGE (time);
COMMENT ON COLUMN serving.decisions.role IS 'champion, canary or shadow; or another alias that the request named.';
COMMENT ON COLUMN serving.decisions.policy_version IS 'The version of the model''s policy; a model has one policy at a time.';
CREATE INDEX ON serving.decisions (model, time DESC);
CREATE INDEX ON serving.decisions (entity, time DESC) WHERE entity IS NOT NULL;

-- Rows of months without a partition; serving.maintain moves them into one.
CREATE TABLE serving.decisions_default PARTITION OF serving.decisions DEFAULT;

-- What turned out to be true, with the time at which it was known. A correction is another row.
CREATE TABLE serving.labels (
    request  uuid        NOT NULL,
    row      integer     NOT NULL,
    known_at timestamptz NOT NULL,
    value    jsonb       NOT NULL,
    put_by   text        NOT NULL,
    put_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (request, row, known_at)
);

-- Settings of the part that functions need; the one-shot writes them.
CREATE TABLE serving.settings (name text PRIMARY KEY, value text NOT NULL);

-- Makes the partitions of this month and the next two, and drops those that ended before the retention's months.
-- It belongs to the owner of the schema, so that the service's role needs no right to drop anything.
CREATE FUNCTION serving.maintain() RETURNS TABLE (action text, partition text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month  date;
    name   text;
    months integer := (SELECT value FROM serving.settings s WHERE s.name = 'retention_months')::integer;
BEGIN
    PERFORM pg_advisory_xact_lock(1, 1);  -- several instances of the service take turns
    FOR offset_months IN 0..2 LOOP
        month := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => offset_months);
        name := format('decisions_%s', to_char(month, 'YYYY_MM'));
        IF to_regclass('serving.' || name) IS NULL THEN
            EXECUTE format('CREATE TABLE serving.%I (LIKE serving.decisions INCLUDING ALL)', name);
            EXECUTE format(
                'WITH moved AS (DELETE FROM serving.decisions_default WHERE time >= %1$L AND time < %2$L RETURNING *)'
                ' INSERT INTO serving.%3$I SELECT * FROM moved',
                month::timestamp AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC', name);
            EXECUTE format('ALTER TABLE serving.decisions ATTACH PARTITION serving.%I FOR VALUES FROM (%L) TO (%L)',
                name, month::timestamp AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
            action := 'created'; partition := name; RETURN NEXT;
        END IF;
    END LOOP;
    IF months > 0 THEN
        FOR name IN
            SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'serving.decisions'::regclass AND c.relname ~ '^decisions_\d{4}_\d{2}$'
              AND to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month'
                  <= date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => months - 1)
        LOOP
            EXECUTE format('DROP TABLE serving.%I', name);
            action := 'dropped'; partition := name; RETURN NEXT;
        END LOOP;
    END IF;
END
$$;
REVOKE ALL ON FUNCTION serving.maintain() FROM PUBLIC;
