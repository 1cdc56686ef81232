//! A line between the gateway and a service that can be cut: what is cut hangs, as a network does,
//! and nobody is told.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The line.
pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    whole: watch::Sender<bool>,
}

impl Line {
    /// A line to the `host:port` of a service, until the test's runtime ends.
    pub(crate) async fn to(service: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (whole, state) = watch::channel(true);
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, service.clone(), state.clone()));
            }
        });
        Self { address, whole }
    }

    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// What was open stays lost; what is opened from now on gets through.
    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn carry(mut client: TcpStream, service: String, mut whole: watch::Receiver<bool>) {
    if *whole.borrow_and_update() {
        let mut server = TcpStream::connect(service).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = whole.wait_for(|whole| !whole) => {}
        }
        // Held open in silence, with whatever was under way.
        whole.wait_for(|whole| *whole).await.ok();
        return;
    }
    whole.wait_for(|whole| *whole).await.ok();
}
