//! Redis as tests need it: a server of their own to be broken, and a look into any.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use fred::{
    clients::Client,
    interfaces::ClientLike as _,
    types::{Builder, ClusterHash, CustomCommand, FromValue, config::Config},
};
use ops::testing::{TestProcess, eventually, free_address};

/// A server of a test's own.
pub(crate) struct Server {
    process: TestProcess,
    address: SocketAddr,
    /// Where it saves what it holds, when it is told to.
    folder: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let address = free_address();
        let folder = tempfile::tempdir().unwrap();
        let process = run(address, folder.path());
        let server = Self {
            process,
            address,
            folder,
        };
        server.up().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// With what it saved last, if anything.
    pub(crate) async fn restart(&mut self) {
        self.process = run(self.address, self.folder.path());
        self.up().await;
    }

    /// Holds it, so that it accepts connections and answers nothing; or lets it go on.
    pub(crate) fn pause(&self, paused: bool) {
        let signal = if paused { "-STOP" } else { "-CONT" };
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    async fn up(&self) {
        let connect = async || tokio::net::TcpStream::connect(self.address).await.ok();
        eventually("Redis is up", Duration::from_secs(10), connect).await;
    }
}

/// Runs a command on the server at `url`.
pub(crate) async fn ask<R: FromValue>(url: &str, command: &[&str]) -> R {
    let client = connect(url).await;
    let (name, arguments) = command.split_first().unwrap();
    let name = CustomCommand::new((*name).to_owned(), ClusterHash::Random, false);
    let answer = client.custom(name, arguments.to_vec()).await.unwrap();
    client.quit().await.ok();
    answer
}

/// The keys that begin with `prefix`.
pub(crate) async fn keys(url: &str, prefix: &str) -> Vec<String> {
    ask(url, &["KEYS", &format!("{prefix}*")]).await
}

async fn connect(url: &str) -> Client {
    let config = Config::from_url(url).unwrap();
    let client = Builder::from_config(config).build().unwrap();
    client.init().await.unwrap();
    client
}

fn run(address: SocketAddr, folder: &Path) -> TestProcess {
    let port = address.port().to_string();
    let options = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"];
    let mut command = Command::new("redis-server");
    command.args(["--port", &port]).args(options);
    command.arg("--dir").arg(folder);
    TestProcess::start(command.stdout(Stdio::null()))
}
