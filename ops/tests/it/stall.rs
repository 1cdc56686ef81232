//! Postgres behind a wire that can be frozen: connections that stand then never move another byte,
//! as when the server's process hangs; new ones are as good as ever.

use ops::{
    config::DatabaseOptions,
    postgres::{Pool, connect},
    testing::TestDatabase,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The wire.
pub(crate) struct Stall {
    url: String,
    freeze: watch::Sender<()>,
}

impl Stall {
    /// A wire to the server of `database`.
    pub(crate) async fn before(database: &TestDatabase) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (login, place) = database.url().rsplit_once('@').unwrap();
        let (server, name) = place.split_once('/').unwrap();
        let (server, url) = (server.to_owned(), format!("{login}@{address}/{name}"));
        let freeze = watch::Sender::new(());
        let frozen = freeze.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(carry(near, far, frozen.subscribe()));
            }
        });
        Self { url, freeze }
    }

    /// Freezes the connections that stand.
    pub(crate) fn freeze(&self) {
        self.freeze.send_replace(());
    }

    /// A pool on the database through the wire.
    pub(crate) fn pool(&self) -> Pool {
        let options = DatabaseOptions {
            database_url: self.url.clone().into(),
            database_connections: 8,
        };
        connect(&options, "test").unwrap()
    }
}

async fn carry(mut near: TcpStream, mut far: TcpStream, mut frozen: watch::Receiver<()>) {
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = frozen.changed() => std::future::pending().await,
    }
}
