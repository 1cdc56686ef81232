//! An upstream that records what arrives byte for byte, and answers every request it can frame with
//! the bytes that it is told.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const FRAMING: [&str; 6] = [
    "connection",
    "content-length",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const GOOD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

/// The upstream.
pub(crate) struct Recorder {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Recorded>>>,
    answer: Arc<Mutex<String>>,
}

/// One request as its bytes were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) line: String,
    /// Header fields as they were written, in the order of their names.
    pub(crate) fields: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Recorder {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::<Mutex<Vec<Recorded>>>::default();
        let record = Arc::clone(&requests);
        let answer = Arc::new(Mutex::new(GOOD.to_owned()));
        let told = Arc::clone(&answer);
        #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&record), Arc::clone(&told)));
            }
        });
        Self {
            url,
            requests,
            answer,
        }
    }

    /// Answers with these bytes from now on, and closes after them if they say so.
    pub(crate) fn answer(&self, bytes: &str) {
        bytes.clone_into(&mut self.answer.lock().unwrap());
    }

    /// What arrived since the last call.
    pub(crate) fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl Recorded {
    /// The fields that say where the request ends, as they were written but for case.
    pub(crate) fn framing(&self) -> String {
        let of_framing = |field: &&String| {
            let name = field.split(':').next().unwrap_or_default();
            FRAMING.contains(&name.to_ascii_lowercase().as_str())
        };
        let fields: Vec<&str> = { self.fields.iter() }
            .filter(of_framing)
            .map(String::as_str)
            .collect();
        fields.join("\r\n").to_ascii_lowercase()
    }

    /// The names of all fields.
    pub(crate) fn names(&self) -> Vec<String> {
        let name = |field: &String| field.split(':').next().unwrap_or_default().to_lowercase();
        self.fields.iter().map(name).collect()
    }
}

/// Reads by the strictest rule: a head with CR LF, then as many bytes as Content-Length says.
async fn serve(mut stream: TcpStream, record: Arc<Mutex<Vec<Recorded>>>, told: Arc<Mutex<String>>) {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                if !bytes.is_empty() {
                    note(&record, "a rest that is no request", Vec::new(), bytes);
                }
                return;
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end - 4]).into_owned();
        let (line, fields) = head.split_once("\r\n").unwrap_or((&head, ""));
        let mut fields: Vec<String> = fields.split("\r\n").map(str::to_owned).collect();
        fields.sort_by_key(|field| field.to_ascii_lowercase());
        let length = fields
            .iter()
            .find_map(|field| {
                field
                    .to_ascii_lowercase()
                    .strip_prefix("content-length:")
                    .map(str::to_owned)
            })
            .map_or(0, |length| length.trim().parse().unwrap());
        while bytes.len() < end + length {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                break;
            }
        }
        let rest = bytes.split_off((end + length).min(bytes.len()));
        note(&record, line, fields, bytes[end..].to_vec());
        bytes = rest;
        let answer = told.lock().unwrap().clone();
        let written = stream.write_all(answer.as_bytes()).await;
        if written.is_err() || answer.contains("connection: close") {
            return;
        }
    }
}

fn note(record: &Mutex<Vec<Recorded>>, line: &str, fields: Vec<String>, body: Vec<u8>) {
    let line = line.to_owned();
    record.lock().unwrap().push(Recorded { line, fields, body });
}
