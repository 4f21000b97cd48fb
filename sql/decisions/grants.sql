-- The role of the scoring service, which runs the code of models: it adds and reads, and changes and removes nothing.
GRANT USAGE ON SCHEMA serving TO {service};
GRANT SELECT, INSERT ON serving.decisions, serving.labels, serving.keys, serving.policies, serving.policy_activations,
    serving.deployments, serving.traffic TO {service};
GRANT SELECT ON serving.settings, serving.decisions_default, serving.current_keys, serving.current_policies, serving.current_traffic TO {service};
GRANT EXECUTE ON FUNCTION serving.maintain() TO {service};
