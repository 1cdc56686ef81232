//! One test's world: a database, a topic prefix, a chain with a registry of its own, keys; and what
//! can be done in it: complete jobs, run relayers, read what they say, ask for proofs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use alloy::{
    consensus::{Transaction as _, TxEnvelope},
    eips::Decodable2718 as _,
    primitives::{Address, B256, keccak256},
    signers::local::PrivateKeySigner,
    sol_types::SolCall as _,
};
use contracts::{
    event::{
        BatchConfirmed, Completed, JOBS_EVENTS, JobEvent, Kind, RELAYER_CONFIRMED, Record, Seal,
        proto_time,
    },
    id::{JobId, TenantId},
    registry::JobsRegistry::confirmBatchCall,
};
use ops::{
    clock::Clock,
    config::KafkaOptions,
    postgres::Pool,
    testing::{
        self, TestDatabase, TestProcess, eventually,
        records::{Told, from_the_start, produce},
        value,
    },
};
use rdkafka::{
    Message as _, Offset,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
};
use relayer::{
    signer::Attesters,
    store::{SCHEMA, migrations},
};
use uuid::Uuid;

use crate::{DEADLINE, node::Node};

/// Tenant of every job, unless a test says otherwise.
pub(crate) const SUBJECT: &str = "user_1";

pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) registry: Address,
    pub(crate) pool: Pool,
    pub(crate) tenant: TenantId,
    pub(crate) gas: PrivateKeySigner,
    pub(crate) admin: Address,
    name: String,
    kafka: KafkaOptions,
    folder: tempfile::TempDir,
    settings: BTreeMap<&'static str, String>,
    // Last, so that the pool above is gone when it is dropped.
    pub(crate) database: TestDatabase,
}

/// Times a relayer said that a batch is final, by event identity.
pub(crate) type Announced = BTreeMap<(String, String), Vec<BatchConfirmed>>;

impl World {
    /// A world on this chain, with a registry deployed by the real command.
    pub(crate) async fn on(node: Node) -> Self {
        let (database, pool) = TestDatabase::with_schema(SCHEMA, &migrations()).await;
        let gas = random_key();
        let admin = random_key().address();
        node.fund(gas.address()).await;
        node.fund(admin).await;
        let name = testing::prefix("relayer");
        let mut world = Self {
            registry: Address::ZERO,
            tenant: TenantId::generate(Clock::system().now()),
            kafka: testing::kafka(),
            folder: tempfile::tempdir().unwrap(),
            settings: BTreeMap::new(),
            node,
            pool,
            gas,
            admin,
            name,
            database,
        };
        let attesters: Vec<PrivateKeySigner> = (0..3).map(|_| random_key()).collect();
        world.write_keys("attesters", &attesters);
        world.write_keys("gas", std::slice::from_ref(&world.gas));
        for (variable, value) in [
            ("DATABASE_URL", world.database.url().to_owned()),
            ("KAFKA_BROKERS", world.kafka.kafka_brokers.clone()),
            ("TOPIC_PREFIX", world.kafka.topic_prefix.clone()),
            ("RPC_URL", world.node.url.clone()),
            ("ATTESTER_KEYS_FILE", world.path("attesters")),
            ("GAS_KEY_FILE", world.path("gas")),
            ("BATCH_MAX_AGE_MS", "200".to_owned()),
            ("POLL_MS", "100".to_owned()),
            ("RUST_LOG", "info,rdkafka=off,librdkafka=off".to_owned()),
        ] {
            world.set(variable, value);
        }
        let admin = world.admin.to_string();
        let deployed = world
            .command("deploy")
            .args(["--json", "--admin", &admin])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&deployed.stdout);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!(
                "deploy: {error}: {}",
                String::from_utf8_lossy(&deployed.stderr)
            )
        });
        world.registry = line["address"].as_str().unwrap().parse().unwrap();
        world.set("REGISTRY_ADDRESS", world.registry.to_string());
        let topics = [JOBS_EVENTS, RELAYER_CONFIRMED];
        ops::kafka::ensure_topics(&world.kafka, &topics)
            .await
            .unwrap();
        world
    }

    /// Another database and other topics for the same registry and keys.
    pub(crate) async fn with_new_database(self) -> Self {
        let (database, pool) = TestDatabase::with_schema(SCHEMA, &migrations()).await;
        let kafka = testing::kafka();
        let mut world = Self {
            pool,
            kafka,
            database,
            ..self
        };
        world.set("DATABASE_URL", world.database.url().to_owned());
        world.set("TOPIC_PREFIX", world.kafka.topic_prefix.clone());
        let topics = [JOBS_EVENTS, RELAYER_CONFIRMED];
        ops::kafka::ensure_topics(&world.kafka, &topics)
            .await
            .unwrap();
        world
    }

    pub(crate) fn set(&mut self, variable: &'static str, value: impl Into<String>) {
        self.settings.insert(variable, value.into());
    }

    pub(crate) fn path(&self, file: &str) -> String {
        self.folder.path().join(file).display().to_string()
    }

    pub(crate) fn write_keys(&self, file: &str, keys: &[PrivateKeySigner]) {
        let mut file = File::create(self.path(file)).unwrap();
        for key in keys {
            writeln!(file, "{}", key.to_bytes()).unwrap();
        }
    }

    /// The attesters, in the order in which they are asked to sign.
    pub(crate) fn attesters(&self) -> Vec<Address> {
        let file = PathBuf::from(self.path("attesters"));
        Attesters::from_file(&file).unwrap().addresses()
    }

    /// The real program with this world's configuration.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_relayer"));
        command.env_clear().envs(&self.settings).arg(subcommand);
        command
    }

    /// Starts `relayer run`; what it says is kept under target/tmp.
    pub(crate) fn relayer(&self) -> TestProcess {
        let log = File::options().create(true).append(true).open(self.log());
        TestProcess::start(self.command("run").stderr(log.unwrap()))
    }

    /// How often the relayers have said these words.
    pub(crate) fn said(&self, words: &str) -> usize {
        let log = std::fs::read_to_string(self.log()).unwrap();
        log.matches(words).count()
    }

    fn log(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.log", self.name))
    }

    /// Tells of `count` completed jobs that want confirmation.
    pub(crate) async fn complete(&self, count: usize, individual: bool) -> Vec<JobId> {
        let now = Clock::system().now();
        let jobs: Vec<JobId> = (0..count).map(|_| JobId::generate(now)).collect();
        let events: Vec<JobEvent> = jobs
            .iter()
            .map(|job| self.completion(*job, individual))
            .collect();
        self.publish(&events).await;
        jobs
    }

    pub(crate) fn completion(&self, job: JobId, individual: bool) -> JobEvent {
        let hash = |of: &str| keccak256(format!("{of} {job}")).to_vec();
        let seal = Seal {
            individual,
            submitter: vec![0; 20],
            content_hash: hash("content"),
            result_hash: hash("result"),
            salt: hash("salt"),
        };
        self.event(
            job,
            3,
            Kind::Completed(Completed {
                seal: Some(seal),
                ..Completed::default()
            }),
        )
    }

    pub(crate) fn event(&self, job: JobId, event_number: u64, kind: Kind) -> JobEvent {
        JobEvent {
            tenant_id: self.tenant.to_string(),
            job_id: job.to_string(),
            event_number,
            occurred_at: Some(proto_time(Clock::system().now())),
            job_type: "digest".to_owned(),
            subject: SUBJECT.to_owned(),
            team: Some("team_1".to_owned()),
            kind: Some(kind),
        }
    }

    pub(crate) async fn publish(&self, events: &[JobEvent]) {
        let records: Vec<Record> = events.iter().map(|it| it.record().unwrap()).collect();
        let told = records.iter().map(|record| Told {
            topic: record.topic,
            key: &record.key,
            headers: record.attributes.headers(),
            value: &record.value,
        });
        produce(&self.kafka, told).await;
    }

    /// Reads what was announced until `jobs` are all in it, and on to what is now the end.
    pub(crate) async fn told_of(&self, jobs: &[JobId]) -> Announced {
        let wanted: BTreeSet<String> = jobs.iter().map(JobId::to_string).collect();
        let consumer = from_the_start(&self.kafka, RELAYER_CONFIRMED).await;
        let reading = tokio::task::spawn_blocking(move || {
            let mut told = Announced::new();
            let mut missing = wanted;
            let started = Instant::now();
            let mut ends = None;
            loop {
                assert!(
                    started.elapsed() < DEADLINE,
                    "{} jobs are not final",
                    missing.len()
                );
                if missing.is_empty() {
                    let ends = ends.get_or_insert_with(|| ends_of(&consumer));
                    if is_at(&consumer, ends) {
                        return told;
                    }
                }
                let Some(message) = consumer.poll(Duration::from_millis(200)) else {
                    continue;
                };
                let message = message.unwrap();
                let event = BatchConfirmed::from_value(message.payload().unwrap()).unwrap();
                for job in &event.jobs {
                    missing.remove(&job.job_id);
                }
                let headers = message.headers().unwrap();
                let header = |name: &str| {
                    let found = headers.iter().find(|header| header.key == name);
                    String::from_utf8(found.unwrap().value.unwrap().to_vec()).unwrap()
                };
                told.entry((header("ce_source"), header("ce_id")))
                    .or_default()
                    .push(event);
            }
        });
        reading.await.unwrap()
    }

    /// What was announced once nothing more is to come: of these jobs, and each exactly once.
    pub(crate) async fn told_once(&self, jobs: &[JobId]) -> Announced {
        let rest = format!(
            "SELECT NOT EXISTS (SELECT FROM relayer.batches WHERE state <> 'finalized')\n\
             AND NOT EXISTS (SELECT FROM relayer.outbox WHERE published_at IS NULL)\n\
             AND count(lane_id) >= {} AND count(lane_id) = count(*) FROM relayer.confirmations",
            jobs.len()
        );
        self.until("nothing is under way any more", &rest).await;
        let told = self.told_of(jobs).await;
        for (identity, times) in &told {
            assert_eq!(times.len(), 1, "{identity:?}");
        }
        told
    }

    /// Waits until a query gives true.
    pub(crate) async fn until(&self, what: &str, sql: &str) {
        let holds = async || value::<bool>(&self.pool, sql).await.then_some(());
        eventually(what, DEADLINE, holds).await;
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        value(&self.pool, sql).await
    }

    /// What must hold after whatever happened: each job on chain once and told once, sequences and
    /// batches without gaps, no nonce used for two things.
    pub(crate) async fn audit(&self, jobs: &[JobId], told: &Announced) {
        let mut seen = BTreeSet::new();
        let mut next_sequence = 1;
        let mut batches: Vec<&BatchConfirmed> = told.values().map(|it| &it[0]).collect();
        batches.sort_by_key(|batch| batch.batch_number);
        for (batch, number) in batches.iter().zip(1..) {
            assert_eq!(
                (batch.batch_number, batch.first_sequence),
                (number, next_sequence)
            );
            for job in &batch.jobs {
                assert_eq!(job.sequence, next_sequence);
                assert!(seen.insert(job.job_id.clone()), "{} twice", job.job_id);
                next_sequence += 1;
            }
        }
        assert_eq!(seen, jobs.iter().map(JobId::to_string).collect());
        let logs = self.node.confirmed(self.registry).await;
        for ((log, transaction), batch) in logs.iter().zip(&batches) {
            assert_eq!(log.batchNumber, batch.batch_number);
            assert_eq!(log.jobsRoot.as_slice(), batch.jobs_root);
            assert_eq!(transaction.as_slice(), batch.transaction_hash);
        }
        assert_eq!(logs.len(), batches.len());
        let cursor = self.node.cursor(self.registry).await;
        assert_eq!(cursor.nextSequence, next_sequence);
        self.audit_nonces().await;
    }

    async fn audit_nonces(&self) {
        let client = self.pool.get().await.unwrap();
        let sql = "SELECT raw FROM relayer.transactions ORDER BY nonce, attempt";
        let mut work: BTreeMap<u64, u64> = BTreeMap::new();
        for row in client.query(sql, &[]).await.unwrap() {
            let raw: Vec<u8> = row.get(0);
            let transaction = TxEnvelope::decode_2718_exact(&raw).unwrap();
            let call = confirmBatchCall::abi_decode(transaction.input()).unwrap();
            let batch = call.confirmation.batchNumber;
            let first = *work.entry(transaction.nonce()).or_insert(batch);
            assert_eq!(
                first,
                batch,
                "nonce {} was used for two batches",
                transaction.nonce()
            );
        }
    }
}

/// Where each partition that is read ends now.
fn ends_of(consumer: &BaseConsumer) -> BTreeMap<i32, i64> {
    let assigned = consumer.assignment().unwrap();
    let end = |topic: &str, partition| {
        let (_, end) = consumer
            .fetch_watermarks(topic, partition, DEADLINE)
            .unwrap();
        (partition, end)
    };
    let partitions = assigned.elements();
    partitions
        .iter()
        .map(|it| end(it.topic(), it.partition()))
        .collect()
}

/// Whether the partitions were read up to these ends.
fn is_at(consumer: &BaseConsumer, ends: &BTreeMap<i32, i64>) -> bool {
    let position = consumer.position().unwrap();
    position.elements().iter().all(|it| match it.offset() {
        Offset::Offset(next) => next >= ends[&it.partition()],
        _ => ends[&it.partition()] == 0,
    })
}

pub(crate) fn random_key() -> PrivateKeySigner {
    let seed: B256 = keccak256(Uuid::new_v4());
    PrivateKeySigner::from_bytes(&seed).unwrap()
}
