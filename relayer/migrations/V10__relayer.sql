-- Confirmations, batches, transactions and lanes: how outcomes of jobs become final on chain.

-- One writer each: a registry on a chain, and the gas key that pays for its transactions.
CREATE TABLE relayer.lanes (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id      bigint      NOT NULL,
    registry      bytea       NOT NULL CHECK (octet_length(registry) = 20),
    gas_key       bytea       NOT NULL CHECK (octet_length(gas_key) = 20),
    next_batch    bigint      NOT NULL CHECK (next_batch > 0),
    next_sequence bigint      NOT NULL CHECK (next_sequence > 0),
    next_nonce    bigint      NOT NULL CHECK (next_nonce >= 0),
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (chain_id, registry),
    -- Two lanes that share a key would tear each other's nonces.
    UNIQUE (chain_id, gas_key)
);

-- A sealed batch's content never changes; its state does.
CREATE TABLE relayer.batches (
    lane_id          bigint      NOT NULL REFERENCES relayer.lanes,
    number           bigint      NOT NULL,
    first_sequence   bigint      NOT NULL,
    job_count        int         NOT NULL CHECK (job_count > 0),
    jobs_root        bytea       NOT NULL CHECK (octet_length(jobs_root) = 32),
    commitment       bytea       NOT NULL CHECK (octet_length(commitment) = 32),
    state            text        NOT NULL
        CHECK (state IN ('sealed', 'signed', 'broadcast', 'stalled', 'included', 'finalized')),
    -- Of the signatures and the transaction in force.
    signer_epoch     bigint,
    nonce            bigint,
    -- The block of the lane's last final batch when this one was first signed: since the contract
    -- takes batches in order, no confirmation lies below.
    signed_after     bigint,
    -- How often it reverted while the contract waited for it; too often, and it is stalled.
    reverts          int         NOT NULL DEFAULT 0 CHECK (reverts >= 0),
    block_number     bigint,
    block_hash       bytea,
    transaction_hash bytea,
    sealed_at        timestamptz NOT NULL,
    finalized_at     timestamptz,
    PRIMARY KEY (lane_id, number),
    UNIQUE (lane_id, first_sequence),
    CHECK (state <> 'signed' OR signer_epoch IS NOT NULL),
    CHECK (state <> 'broadcast' OR (signer_epoch IS NOT NULL AND nonce IS NOT NULL)),
    CHECK (state NOT IN ('included', 'finalized')
        OR (block_number IS NOT NULL AND block_hash IS NOT NULL AND transaction_hash IS NOT NULL))
);
CREATE INDEX batches_unfinal ON relayer.batches (lane_id, number) WHERE state <> 'finalized';

-- One row a job, for ever: this key is why a job is confirmed once.
CREATE TABLE relayer.confirmations (
    job_id       uuid PRIMARY KEY,
    ordinal      bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id    uuid        NOT NULL,
    subject      text        NOT NULL,
    team         text,
    individual   boolean     NOT NULL,
    submitter    bytea       NOT NULL CHECK (octet_length(submitter) = 20),
    content_hash bytea       NOT NULL CHECK (octet_length(content_hash) = 32),
    result_hash  bytea       NOT NULL CHECK (octet_length(result_hash) = 32),
    status       smallint    NOT NULL CHECK (status IN (1, 2)),
    salt         bytea CHECK (octet_length(salt) = 32),
    received_at  timestamptz NOT NULL,
    lane_id      bigint,
    batch_number bigint,
    sequence     bigint,
    UNIQUE (lane_id, sequence),
    FOREIGN KEY (lane_id, batch_number) REFERENCES relayer.batches (lane_id, number),
    CHECK ((lane_id IS NULL) = (batch_number IS NULL) AND (lane_id IS NULL) = (sequence IS NULL))
);
CREATE INDEX confirmations_waiting ON relayer.confirmations (ordinal)
    WHERE lane_id IS NULL AND NOT individual;
CREATE INDEX confirmations_alone ON relayer.confirmations (tenant_id, ordinal)
    WHERE lane_id IS NULL AND individual;
CREATE INDEX confirmations_batch ON relayer.confirmations (lane_id, batch_number, sequence);

-- Append-only.
CREATE TABLE relayer.signatures (
    lane_id      bigint      NOT NULL,
    batch_number bigint      NOT NULL,
    signer_epoch bigint      NOT NULL,
    signer       bytea       NOT NULL CHECK (octet_length(signer) = 20),
    signature    bytea       NOT NULL CHECK (octet_length(signature) = 65),
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (lane_id, batch_number, signer_epoch, signer),
    FOREIGN KEY (lane_id, batch_number) REFERENCES relayer.batches (lane_id, number)
);

-- A nonce is for one batch and never for other work.
CREATE TABLE relayer.nonces (
    lane_id      bigint NOT NULL,
    gas_key      bytea  NOT NULL CHECK (octet_length(gas_key) = 20),
    nonce        bigint NOT NULL,
    batch_number bigint NOT NULL,
    PRIMARY KEY (lane_id, gas_key, nonce),
    UNIQUE (lane_id, gas_key, nonce, batch_number),
    FOREIGN KEY (lane_id, batch_number) REFERENCES relayer.batches (lane_id, number)
);

-- Append-only, written before the bytes leave; what became of the sending is noted after.
CREATE TABLE relayer.transactions (
    hash         bytea PRIMARY KEY CHECK (octet_length(hash) = 32),
    lane_id      bigint      NOT NULL,
    gas_key      bytea       NOT NULL,
    nonce        bigint      NOT NULL,
    attempt      int         NOT NULL,
    batch_number bigint      NOT NULL,
    max_fee_wei  bigint      NOT NULL,
    tip_wei      bigint      NOT NULL,
    raw          bytea       NOT NULL,
    created_at   timestamptz NOT NULL,
    broadcast_at timestamptz,
    outcome      text,
    UNIQUE (lane_id, gas_key, nonce, attempt),
    FOREIGN KEY (lane_id, gas_key, nonce, batch_number)
        REFERENCES relayer.nonces (lane_id, gas_key, nonce, batch_number)
);
