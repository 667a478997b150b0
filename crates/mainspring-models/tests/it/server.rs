//! A model server on a loopback socket that follows a script, one entry a request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Step {
    /// Write the pieces one by one, and wait for the next request.
    Answer(Vec<Vec<u8>>),
    /// Write, and close the connection.
    Close(Vec<u8>),
    /// Write, and then do nothing until the client goes away.
    Hang(Vec<u8>),
    /// Write, keep the connection open, and close it when told to.
    CloseWhenTold(Vec<u8>, Arc<Notify>),
}

/// The server, its log, and how many connections it had.
pub struct Server {
    pub base_url: String,
    state: Arc<Mutex<State>>,
    gone: mpsc::UnboundedReceiver<()>,
}

#[derive(Default)]
struct State {
    script: VecDeque<Step>,
    requests: Vec<String>,
    connections: usize,
}

impl Server {
    /// Serves the script on a free port; the last entry answers all further requests.
    pub async fn start(script: Vec<Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { script: script.into(), ..State::default() }));
        let (tell_gone, gone) = mpsc::unbounded_channel();
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, Arc::clone(&shared), tell_gone.clone()));
            }
        });
        Self { base_url, state, gone }
    }

    /// The requests so far, head and body.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The connections so far.
    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// Waits until a connection is closed: by the client, or by the server because it was told to.
    pub async fn connection_gone(&mut self) {
        self.gone.recv().await.unwrap();
    }
}

async fn serve(
    mut stream: TcpStream,
    state: Arc<Mutex<State>>,
    tell_gone: mpsc::UnboundedSender<()>,
) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let step = {
            let mut state = state.lock().unwrap();
            state.requests.push(request);
            match state.script.len() {
                1 => state.script[0].clone(),
                _ => state.script.pop_front().unwrap(),
            }
        };
        match step {
            Step::Answer(pieces) => {
                for piece in pieces {
                    if stream.write_all(&piece).await.is_err() {
                        return;
                    }
                    // Lets the client read this piece before the next one is there.
                    tokio::task::yield_now().await;
                }
            }
            Step::Close(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Step::Hang(bytes) => {
                let _ = stream.write_all(&bytes).await;
                while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
                let _ = tell_gone.send(());
                return;
            }
            Step::CloseWhenTold(bytes, told) => {
                let _ = stream.write_all(&bytes).await;
                told.notified().await;
                drop(stream);
                let _ = tell_gone.send(());
                return;
            }
        }
    }
    let _ = tell_gone.send(());
}

/// The next request, or none at the end of the connection.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        let text = String::from_utf8_lossy(buffer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok()
            });
            let length = length.unwrap_or(0);
            if body.len() >= length {
                let end = head.len() + 4 + length;
                buffer.drain(..end);
                return Some(text[..end].to_owned());
            }
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// A whole response.
pub fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}").into_bytes()
}

/// A whole answer of status 200.
pub fn answer(text: &str) -> Vec<u8> {
    let body = serde_json::json!({
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    });
    response("200 OK", "content-type: application/json\r\n", &body.to_string())
}

/// The head of a streamed response.
pub const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// One HTTP chunk.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// An event that carries text.
pub fn text_event(text: &str) -> String {
    let data = serde_json::json!({"choices": [{"delta": {"content": text}}]});
    format!("data: {data}\n\n")
}
