//! A Kafka of a test's own, to be broken: one broker, from the jars that `KAFKA_JARS` names.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::net::TcpStream;

use super::{TestProcess, eventually, free_address, service};

/// A broker starts in a few seconds; the machine may be busy with other tests.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// A broker that keeps its data over a [`Broker::kill`].
pub struct Broker {
    folder: tempfile::TempDir,
    brokers: String,
    process: Option<TestProcess>,
}

impl Broker {
    /// Starts a new one, without topics.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("the folder for temporary files takes another");
        let brokers = free_address().to_string();
        let config = configuration(folder.path(), &brokers, &free_address().to_string());
        fs::write(folder.path().join("server.properties"), config).expect("the folder is ours");
        let mut broker = Self {
            folder,
            brokers,
            process: None,
        };
        let tool = "kafka.tools.StorageTool format --standalone --cluster-id";
        let mut format = broker.java(tool);
        format.args(["AAAAAAAAAAAAAAAAAAAAAA", "--config", "server.properties"]);
        let formatted = format.status().expect("java can be started");
        assert!(formatted.success(), "the broker's storage cannot be made");
        broker.restart().await;
        broker
    }

    /// Its address, for `KAFKA_BROKERS`.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on what it had.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn restart(&mut self) {
        let mut command = self.java("kafka.Kafka server.properties");
        self.process = Some(TestProcess::start(&mut command));
        // The broker opens this port only once it is registered and unfenced.
        let open = async || TcpStream::connect(&self.brokers).await.ok();
        eventually("Kafka is up", START_DEADLINE, open).await;
    }

    fn java(&self, arguments: &str) -> Command {
        let jars = format!("{}/*", service("KAFKA_JARS"));
        let mut command = Command::new("java");
        command
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-Dlog4j2.level=OFF", "-cp", &jars])
            .args(arguments.split(' '))
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

fn configuration(folder: &Path, broker: &str, controller: &str) -> String {
    let listeners = format!("PLAINTEXT://{broker},CONTROLLER://{controller}");
    let data = folder.join("data").display().to_string();
    [
        "process.roles=broker,controller\nnode.id=1\nauto.create.topics.enable=false",
        "controller.listener.names=CONTROLLER\ndefault.replication.factor=1",
        "offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1",
        &format!("listeners={listeners}\nadvertised.listeners={listeners}"),
        &format!("controller.quorum.bootstrap.servers={controller}\nlog.dirs={data}"),
    ]
    .join("\n")
}
