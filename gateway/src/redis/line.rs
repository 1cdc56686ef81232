//! One connection to Redis on which the commands of many requests travel together.
//!
//! The client library sends each script by itself, in a system call of its own, after two changes
//! of task. Of a request that claims a key, that would be the largest part. Here a command is
//! written into a buffer that all share, and what is there when the thread has done its other work
//! leaves at once.

use std::{
    collections::VecDeque,
    io, mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use fred::types::{Value, config::Server};
use pingora::prelude::timeout;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{Notify, oneshot, watch},
    task::yield_now,
    time::sleep,
};
use tokio_util::task::TaskTracker;

use super::{
    Fault,
    resp::{self, Reply},
};

/// Pause between attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How long one may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// A connection that owes an answer and says nothing for so long is lost, at the latest after twice
/// that.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Commands that may wait for their answers.
const WAITING_MAX: usize = 10_000;
/// Memory that a burst may leave behind in the buffers.
const KEPT_BYTES: usize = 64 * 1_024;

/// Where the connection goes, and what is said first.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) server: Server,
    /// `AUTH` and `SELECT`, as far as they are wanted.
    pub(super) greetings: Vec<Vec<Value>>,
}

/// The connection. Its task runs in the runtime of the first caller, so that a call wakes no other
/// thread: that costs more than the call.
#[derive(Debug)]
pub(super) struct Line {
    target: Target,
    shared: Arc<Shared>,
    link: OnceLock<watch::Receiver<Link>>,
    tasks: TaskTracker,
}

/// How the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// The first attempt has not ended.
    Trying,
    Up,
    Down,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    up: bool,
    /// Commands that are not sent yet.
    out: BytesMut,
    /// Who waits for the next answers, in order.
    waiting: VecDeque<oneshot::Sender<Reply>>,
}

impl Line {
    /// A line to `target`, which the first command opens.
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            shared: Arc::default(),
            link: OnceLock::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// A line of its own to the same place.
    pub(super) fn another(&self) -> Self {
        Self::new(self.target.clone())
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// At once when there is no connection; when it is lost meanwhile; what Redis says.
    pub(super) async fn ask(&self, command: &[Value]) -> Result<Value, Fault> {
        let mut answer = self.shared.send(command);
        if answer.is_none() {
            self.up().await;
            answer = self.shared.send(command);
        }
        let answer = answer.ok_or_else(|| Fault {
            asked: false,
            text: "there is no connection".to_owned(),
        })?;
        let reply = answer
            .await
            .map_err(|_| "the connection is lost".to_owned())?;
        Ok(reply?)
    }

    /// Sends a command whose answer nobody waits for, if there is a connection.
    pub(super) fn tell(&self, command: &[Value]) {
        self.shared.send(command);
    }

    /// Waits until the first attempt to connect has ended.
    async fn up(&self) {
        let link = self.link.get_or_init(|| {
            let (told, link) = watch::channel(Link::Trying);
            let (target, shared) = (self.target.clone(), Arc::clone(&self.shared));
            self.tasks
                .spawn(async move { shared.keep(&target, told).await });
            link
        });
        let mut link = link.clone();
        link.wait_for(|link| *link != Link::Trying).await.ok();
    }
}

impl Shared {
    /// Puts a command into the queue, if there is a connection.
    fn send(&self, command: &[Value]) -> Option<oneshot::Receiver<Reply>> {
        let mut queue = self.queue();
        if !queue.up || queue.waiting.len() >= WAITING_MAX {
            return None;
        }
        let first = queue.out.is_empty();
        let (teller, answer) = oneshot::channel();
        resp::write(&mut queue.out, command);
        queue.waiting.push_back(teller);
        drop(queue);
        if first {
            self.wake.notify_one();
        }
        Some(answer)
    }

    /// Connects, again and again, until nobody asks any more.
    async fn keep(&self, target: &Target, told: watch::Sender<Link>) {
        while !told.is_closed() {
            if let Ok(Ok(stream)) = timeout(CONNECT_DEADLINE, connect(target)).await {
                self.queue().up = true;
                let _up = Up(self);
                told.send_replace(Link::Up);
                self.carry(stream).await.ok();
            }
            told.send_replace(Link::Down);
            sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn carry(&self, mut stream: TcpStream) -> io::Result<()> {
        let (from, to) = stream.split();
        tokio::select! {
            ended = self.hear(from) => ended,
            ended = self.speak(to) => ended,
        }
    }

    async fn speak(&self, mut to: WriteHalf<'_>) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        loop {
            self.wake.notified().await;
            // Whoever is about to ask does it first, and all goes together.
            yield_now().await;
            mem::swap(&mut bytes, &mut self.queue().out);
            to.write_all(&bytes).await?;
            bytes.clear();
            if bytes.capacity() > KEPT_BYTES {
                bytes = BytesMut::new();
            }
        }
    }

    async fn hear(&self, mut from: ReadHalf<'_>) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        let mut replies = Vec::new();
        // Whether an answer was owed already when this silence was looked at before.
        let mut owed = false;
        loop {
            match timeout(SILENCE_MAX, from.read_buf(&mut bytes)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(heard) => heard?,
                Err(_) if owed => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => {
                    owed = !self.queue().waiting.is_empty();
                    continue;
                }
            };
            owed = false;
            while let Some(reply) = resp::take(&mut bytes)? {
                replies.push(reply);
            }
            let mut queue = self.queue();
            for reply in replies.drain(..) {
                let Some(waiting) = queue.waiting.pop_front() else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                // Whoever did not wait so long went on without.
                waiting.send(reply).ok();
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That there is a connection, for as long as this lives.
struct Up<'a>(&'a Shared);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        // Whoever waits learns it from the loss of its place.
        *self.0.queue() = Queue::default();
    }
}

/// A connection that was greeted.
async fn connect(target: &Target) -> io::Result<TcpStream> {
    let Server { host, port, .. } = &target.server;
    let mut stream = TcpStream::connect((&**host, *port)).await?;
    stream.set_nodelay(true)?;
    for greeting in &target.greetings {
        let mut bytes = BytesMut::new();
        resp::write(&mut bytes, greeting);
        stream.write_all(&bytes).await?;
        let mut answer = BytesMut::new();
        let reply = loop {
            if let Some(reply) = resp::take(&mut answer)? {
                break reply;
            }
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        reply.map_err(io::Error::other)?;
    }
    Ok(stream)
}
