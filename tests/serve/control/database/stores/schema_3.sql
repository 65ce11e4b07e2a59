-- A store as Choir wrote it after release 0.2.0, before its tables were kept by Alembic (schema 3), in the words that SQLite and PostgreSQL share.
CREATE TABLE control (
    id INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    life INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (id)
);
INSERT INTO control VALUES (1, 3, 1, 2);
CREATE TABLE last_write (
    id INTEGER NOT NULL,
    life INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (id)
);
INSERT INTO last_write VALUES (1, 1, 14);
CREATE TABLE ensembles (
    name VARCHAR(63) NOT NULL,
    active INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    previous JSON NOT NULL,
    PRIMARY KEY (name)
);
INSERT INTO ensembles VALUES ('intents', 1, 2, '[]');
INSERT INTO ensembles VALUES ('tone', 1, 0, '[]');
CREATE TABLE versions (
    ensemble VARCHAR(63) NOT NULL,
    version INTEGER NOT NULL,
    manifest JSON NOT NULL,
    source TEXT NOT NULL,
    parameters VARCHAR(64),
    allow_stale_fusion BOOLEAN NOT NULL,
    fitted_on JSON,
    left_at_epoch INTEGER,
    origins JSON DEFAULT '{}' NOT NULL,
    created VARCHAR(40) NOT NULL,
    PRIMARY KEY (ensemble, version),
    FOREIGN KEY(ensemble) REFERENCES ensembles (name)
);
INSERT INTO versions VALUES ('intents', 1, '{"format": 1, "name": "intents", "version": 1, "task": "classification", "members": [{"name": "a", "weight": 0.25, "adapters": [{"adapter": "intents-a", "digest": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]}, {"name": "b", "weight": 0.75, "adapters": [{"adapter": "intents-b", "digest": "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}]}], "fusion": {"method": "weighted_average", "space": "probability", "temperature": 1.0, "plausibility": 0.0}, "labels": ["card_lost", "card_late", "top_up"], "template": "{text}", "verbalizers": {}, "label_scoring": "sum", "thresholds": {}, "on_member_error": "fail", "golden": [], "scores": {}}', 'bundle:/data/bundle', NULL, FALSE, NULL, 1, '{"a": [{"uri": "file:///data/bundle/adapters/intents-a/aaaaaaaaaaaa", "swapped_by": null, "swapped_at": null}], "b": [{"uri": "file:///data/bundle/adapters/intents-b/bbbbbbbbbbbb", "swapped_by": null, "swapped_at": null}]}', '2026-11-01T10:00:00.000+00:00');
INSERT INTO versions VALUES ('tone', 1, '{"format": 1, "name": "tone", "version": 1, "task": "classification", "members": [{"name": "a", "adapters": [{"adapter": "tone-a", "digest": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]}, {"name": "b", "adapters": [{"adapter": "tone-b", "digest": "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}]}], "fusion": {"method": "stack", "space": "probability", "temperature": 1.0, "model": "logistic_regression", "parameters": "fusion/intents/1", "plausibility": 0.0}, "labels": ["card_lost", "card_late", "top_up"], "template": "{text}", "verbalizers": {}, "label_scoring": "sum", "thresholds": {}, "on_member_error": "fail", "golden": [], "scores": {}}', 'bundle:/data/bundle', 'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff', TRUE, '{"a": ["sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"], "b": ["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]}', NULL, '{"a": [{"uri": "file:///data/bundle/adapters/intents-a/aaaaaaaaaaaa", "swapped_by": null, "swapped_at": null}], "b": [{"uri": "file:///data/bundle/adapters/intents-b/bbbbbbbbbbbb", "swapped_by": null, "swapped_at": null}]}', '2026-11-03T10:00:00.000+00:00');
INSERT INTO versions VALUES ('intents', 2, '{"format": 1, "name": "intents", "version": 2, "task": "classification", "members": [{"name": "a", "weight": 0.25, "adapters": [{"adapter": "intents-a", "digest": "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"}]}, {"name": "b", "weight": 0.75, "adapters": [{"adapter": "intents-b", "digest": "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}]}], "fusion": {"method": "weighted_average", "space": "probability", "temperature": 1.0, "plausibility": 0.0}, "labels": ["card_lost", "card_late", "top_up"], "template": "{text}", "verbalizers": {}, "label_scoring": "sum", "thresholds": {}, "on_member_error": "fail", "golden": [], "scores": {}}', 'ann, from 10.0.0.5', NULL, TRUE, '{"a": ["sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"], "b": ["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]}', 2, '{"a": [{"uri": "file:///data/new-a", "swapped_by": "ann, from 10.0.0.5", "swapped_at": "2026-11-05T10:00:00.000+00:00"}], "b": [{"uri": "file:///data/bundle/adapters/intents-b/bbbbbbbbbbbb", "swapped_by": null, "swapped_at": null}]}', '2026-11-05T10:00:00.000+00:00');
INSERT INTO versions VALUES ('intents', 3, '{"format": 1, "name": "intents", "version": 3, "task": "classification", "members": [{"name": "a", "adapters": [{"adapter": "intents-a", "digest": "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"}]}, {"name": "b", "adapters": [{"adapter": "intents-b", "digest": "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}]}], "fusion": {"method": "average", "space": "probability", "temperature": 1.0, "plausibility": 0.0}, "labels": ["card_lost", "card_late", "top_up"], "template": "{text}", "verbalizers": {}, "label_scoring": "sum", "thresholds": {}, "on_member_error": "fail", "golden": [], "scores": {}}', 'ann, from 10.0.0.5', NULL, FALSE, NULL, NULL, '{"a": [{"uri": "file:///data/new-a", "swapped_by": "ann, from 10.0.0.5", "swapped_at": "2026-11-20T10:00:00.000+00:00"}], "b": [{"uri": "file:///data/bundle/adapters/intents-b/bbbbbbbbbbbb", "swapped_by": null, "swapped_at": null}]}', '2026-11-20T10:00:00.000+00:00');
CREATE TABLE rollouts (
    number INTEGER NOT NULL,
    id VARCHAR(32) NOT NULL,
    ensemble VARCHAR(63) NOT NULL,
    from_version INTEGER NOT NULL,
    to_version INTEGER NOT NULL,
    strategy JSON NOT NULL,
    action VARCHAR(32) NOT NULL,
    actor TEXT NOT NULL,
    decision VARCHAR(32),
    decided_by TEXT,
    figures JSON NOT NULL,
    state VARCHAR(32) NOT NULL,
    reason TEXT,
    replicas JSON NOT NULL,
    uris JSON DEFAULT '{}' NOT NULL,
    created VARCHAR(40) NOT NULL,
    updated VARCHAR(40) NOT NULL,
    PRIMARY KEY (number),
    UNIQUE (id),
    FOREIGN KEY(ensemble) REFERENCES ensembles (name)
);
INSERT INTO rollouts VALUES (1, 'aaaaaaaaaaaa', 'intents', 1, 2, '{"kind": "immediate"}', 'swap', 'ann, from 10.0.0.5', NULL, NULL, '{}', 'done', NULL, '{"engine/0": "prepared", "gateway/0": "waiting"}', '{"a": ["file:///data/new-a"]}', '2026-11-06T10:00:00.000+00:00', '2026-11-10T10:00:00.000+00:00');
INSERT INTO rollouts VALUES (2, 'bbbbbbbbbbbb', 'intents', 2, 1, '{"kind": "immediate"}', 'rollback', 'ann, from 10.0.0.5', NULL, NULL, '{}', 'done', NULL, '{"engine/0": "prepared", "gateway/0": "waiting"}', '{}', '2026-11-13T10:00:00.000+00:00', '2026-11-17T10:00:00.000+00:00');
INSERT INTO rollouts VALUES (3, 'cccccccccccc', 'intents', 1, 3, '{"kind": "canary", "share": 0.25, "gates": {"min_requests": 50, "max_error_rate": 0.01, "min_agreement": 0.9, "max_latency_ratio": null, "max_seconds": null}, "auto_promote": true}', 'swap', 'ann, from 10.0.0.5', NULL, NULL, '{"gateway-process": {"candidate": {"requests": 7, "errors": 1, "seconds": 0.5}, "stable": {"requests": 21, "errors": 0, "seconds": 1.25}, "compared": 7, "agreed": 6.5, "dropped": 0}}', 'canarying', NULL, '{}', '{"a": ["file:///data/new-a"]}', '2026-11-19T10:00:00.000+00:00', '2026-11-21T10:00:00.000+00:00');
CREATE TABLE audit (
    number INTEGER NOT NULL,
    at VARCHAR(40) NOT NULL,
    actor TEXT NOT NULL,
    action VARCHAR(32) NOT NULL,
    ensemble VARCHAR(63) NOT NULL,
    from_version INTEGER,
    to_version INTEGER,
    outcome VARCHAR(32) NOT NULL,
    reason TEXT,
    uris JSON DEFAULT '{}' NOT NULL,
    PRIMARY KEY (number)
);
INSERT INTO audit VALUES (1, '2026-11-02T10:00:00.000+00:00', 'choir', 'import', 'intents', NULL, 1, 'done', NULL, '{"a": ["file:///data/bundle/adapters/intents-a/aaaaaaaaaaaa"], "b": ["file:///data/bundle/adapters/intents-b/bbbbbbbbbbbb"]}');
INSERT INTO audit VALUES (2, '2026-11-04T10:00:00.000+00:00', 'choir', 'import', 'tone', NULL, 1, 'done', NULL, '{"a": ["file:///data/bundle/adapters/intents-a/aaaaaaaaaaaa"], "b": ["file:///data/bundle/adapters/intents-b/bbbbbbbbbbbb"]}');
INSERT INTO audit VALUES (3, '2026-11-08T10:00:00.000+00:00', 'ann, from 10.0.0.5', 'swap', 'intents', 1, 2, 'committed', NULL, '{"a": ["file:///data/new-a"]}');
INSERT INTO audit VALUES (4, '2026-11-11T10:00:00.000+00:00', 'ann, from 10.0.0.5', 'swap', 'intents', 1, 2, 'done', NULL, '{"a": ["file:///data/new-a"]}');
INSERT INTO audit VALUES (5, '2026-11-12T10:00:00.000+00:00', 'bob, from 10.0.0.6', 'swap', 'intents', 2, NULL, 'refused', 'The adapter for member ''a'' is refused: it isn''t ''safe''; no.', '{"a": ["s3://models/a"]}');
INSERT INTO audit VALUES (6, '2026-11-15T10:00:00.000+00:00', 'ann, from 10.0.0.5', 'rollback', 'intents', 2, 1, 'committed', NULL, '{}');
INSERT INTO audit VALUES (7, '2026-11-18T10:00:00.000+00:00', 'ann, from 10.0.0.5', 'rollback', 'intents', 2, 1, 'done', NULL, '{}');
CREATE INDEX ix_audit_ensemble ON audit (ensemble);
CREATE INDEX ix_rollouts_ensemble ON rollouts (ensemble);
CREATE INDEX ix_rollouts_state ON rollouts (state);
