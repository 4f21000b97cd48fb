-- Keys of clients. Only hashes; the newest row of a name counts, and one without a hash takes the key away.
CREATE TABLE serving.keys (
    name   text        NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    digest text CHECK (digest ~ '^[0-9a-f]{64}$'),
    PRIMARY KEY (name, at)
);
CREATE VIEW serving.current_keys AS
SELECT name, digest FROM (SELECT DISTINCT ON (name) name, digest FROM serving.keys ORDER BY name, at DESC) newest
WHERE digest IS NOT NULL;

-- How a score becomes a decision. A version never changes.
CREATE TABLE serving.policies (
    model      text        NOT NULL,
    version    integer     NOT NULL CHECK (version > 0),
    definition jsonb       NOT NULL,
    put_by     text        NOT NULL,
    put_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (model, version)
);

-- Which version decides: that of a model's newest row, or none if it names none.
CREATE TABLE serving.policy_activations (
    model   text        NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    version integer,
    set_by  text        NOT NULL,
    reason  text        NOT NULL,
    PRIMARY KEY (model, at),
    FOREIGN KEY (model, version) REFERENCES serving.policies
);
CREATE VIEW serving.current_policies AS
SELECT model, version, definition
FROM (SELECT DISTINCT ON (model) model, version FROM serving.policy_activations ORDER BY model, at DESC) newest
JOIN serving.policies USING (model, version);

-- Which model version an alias named from when on: moved by whom and why, or seen by the service (its own account and reason).
CREATE TABLE serving.deployments (
    id       uuid        PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    model    text        NOT NULL,
    alias    text        NOT NULL,
    version  text        NOT NULL,
    previous text,
    set_by   text        NOT NULL,
    reason   text        NOT NULL
);
CREATE INDEX ON serving.deployments (model, at DESC);

-- How much of a model's traffic its challenger gets; the newest row counts. Shadow: it answers the same rows, and nobody sees it.
CREATE TABLE serving.traffic (
    model  text        NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    mode   text        NOT NULL CHECK (mode IN ('off', 'shadow', 'canary')),
    weight real        NOT NULL DEFAULT 0 CHECK (weight >= 0 AND weight <= 1),
    set_by text        NOT NULL,
    reason text        NOT NULL,
    PRIMARY KEY (model, at)
);
CREATE VIEW serving.current_traffic AS
SELECT DISTINCT ON (model) model, mode, weight FROM serving.traffic ORDER BY model, at DESC;
