-- A store as Choir wrote it soon after release 0.2.0 (schema 2 with last_write): imported, swapped once, and one swap refused.
CREATE TABLE control (
    id INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    life INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (id)
);
INSERT INTO control VALUES (1,2,1,1);
CREATE TABLE last_write (
    id INTEGER NOT NULL,
    life INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (id)
);
INSERT INTO last_write VALUES (1,1,6);
CREATE TABLE ensembles (
    name VARCHAR(63) NOT NULL,
    active INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    previous JSON NOT NULL,
    PRIMARY KEY (name)
);
INSERT INTO ensembles VALUES ('intents',2,1,'[1]');
CREATE TABLE versions (
    ensemble VARCHAR(63) NOT NULL,
    version INTEGER NOT NULL,
    manifest JSON NOT NULL,
    source TEXT NOT NULL,
    parameters VARCHAR(64),
    allow_stale_fusion BOOLEAN NOT NULL,
    fitted_on JSON,
    left_at_epoch INTEGER,
    created VARCHAR(40) NOT NULL,
    PRIMARY KEY (ensemble, version),
    FOREIGN KEY(ensemble) REFERENCES ensembles (name)
);
INSERT INTO versions VALUES ('intents',1,'{"format": 1, "name": "intents", "version": 1, "task": "classification", "members": [{"name": "a", "adapters": [{"adapter": "intents-a", "digest": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]}, {"name": "b", "adapters": [{"adapter": "intents-b", "digest": "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}]}], "fusion": {"method": "average", "space": "probability", "temperature": 1.0, "plausibility": 0.0}, "labels": ["card_lost", "card_late", "top_up"], "template": "{text}", "verbalizers": {}, "label_scoring": "sum", "thresholds": {}, "on_member_error": "fail", "golden": [], "scores": {}}','bundle:/data/bundle',NULL,FALSE,NULL,1,'2026-01-01T00:00:00.000+00:00');
INSERT INTO versions VALUES ('intents',2,'{"format": 1, "name": "intents", "version": 2, "task": "classification", "members": [{"name": "a", "adapters": [{"adapter": "intents-a", "digest": "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"}]}, {"name": "b", "adapters": [{"adapter": "intents-b", "digest": "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}]}], "fusion": {"method": "average", "space": "probability", "temperature": 1.0, "plausibility": 0.0}, "labels": ["card_lost", "card_late", "top_up"], "template": "{text}", "verbalizers": {}, "label_scoring": "sum", "thresholds": {}, "on_member_error": "fail", "golden": [], "scores": {}}','admin@127.0.0.1',NULL,FALSE,NULL,NULL,'2026-01-02T00:00:00.000+00:00');
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
    created VARCHAR(40) NOT NULL,
    updated VARCHAR(40) NOT NULL,
    PRIMARY KEY (number),
    UNIQUE (id),
    FOREIGN KEY(ensemble) REFERENCES ensembles (name)
);
INSERT INTO rollouts VALUES (1,'r2','intents',1,2,'{"kind": "immediate"}','swap','admin@127.0.0.1',NULL,NULL,'{}','done',NULL,'{}','2026-01-01T00:00:00.000+00:00','2026-01-02T00:00:00.000+00:00');
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
    PRIMARY KEY (number)
);
INSERT INTO audit VALUES (1,'2026-01-02T00:00:00.000+00:00','choir','import','intents',NULL,1,'done',NULL);
INSERT INTO audit VALUES (2,'2026-01-02T00:00:00.000+00:00','admin@127.0.0.1','swap','intents',1,2,'committed',NULL);
INSERT INTO audit VALUES (3,'2026-01-02T00:00:00.000+00:00','admin@127.0.0.1','swap','intents',1,2,'done',NULL);
INSERT INTO audit VALUES (4,'2026-01-02T00:00:00.000+00:00','ann@10.0.0.1','swap','intents',2,NULL,'refused','no room');
CREATE INDEX ix_audit_ensemble ON audit (ensemble);
CREATE INDEX ix_rollouts_state ON rollouts (state);
CREATE INDEX ix_rollouts_ensemble ON rollouts (ensemble);
