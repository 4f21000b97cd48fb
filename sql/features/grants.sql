-- The role of the scoring service: it reads, and changes only what functions with their owner's rights change.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA features FROM PUBLIC;
GRANT USAGE ON SCHEMA features TO {service};
GRANT SELECT ON ALL TABLES IN SCHEMA features TO {service};
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA features TO {service};
