//! A blocking client for the tests: starts the server, sends bytes, reads framed answers.
//!
//! Owns the child process. Invariant: a `LoadServer` that is dropped has ended.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;

/// A running load server.
pub struct LoadServer {
    child: Child,
    address: String,
}

impl LoadServer {
    pub fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_load-server"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening ").unwrap().trim().to_owned();
        Self { child, address }
    }

    pub fn close_stdin(&mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }
}

impl Drop for LoadServer {
    fn drop(&mut self) {
        self.close_stdin();
    }
}

/// One answer.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One connection.
pub struct Client {
    socket: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(server: &LoadServer) -> Self {
        let socket = TcpStream::connect(&server.address).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket: BufReader::new(socket) }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).unwrap();
    }

    pub fn send_chat(&mut self, body: &str) {
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
        self.send(format!("{head}{body}").as_bytes());
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
        self.receive()
    }

    pub fn chat(&mut self, body: &str) -> Value {
        self.send_chat(body);
        let answer = self.receive();
        assert_eq!(answer.status, 200);
        answer.json()
    }

    /// The events of a streamed answer, without the closing `[DONE]`.
    pub fn chat_stream(&mut self, body: &str) -> Vec<Value> {
        self.send_chat(body);
        let text = String::from_utf8(self.receive().body).unwrap();
        let mut data: Vec<&str> = text
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").unwrap())
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    pub fn receive(&mut self) -> Answer {
        let status_line = self.line();
        let status = status_line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = None;
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = Some(value.parse().unwrap());
            }
        }
        let body = match length {
            Some(length) => self.exactly(length),
            None => self.chunks(),
        };
        Answer { status, body }
    }

    /// Gives up on answers that do not come.
    pub fn socket_timeout(&mut self) {
        let wait = Some(std::time::Duration::from_millis(200));
        self.socket.get_mut().set_read_timeout(wait).unwrap();
    }

    /// A whole answer, if it comes.
    pub fn try_receive(&mut self) -> Option<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.socket.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
        let mut body = vec![0; length.parse().unwrap()];
        self.socket.read_exact(&mut body).ok()?;
        Some(Answer { status: head[9..12].parse().unwrap(), body })
    }

    pub fn is_closed(&mut self) -> bool {
        matches!(self.socket.fill_buf(), Ok([]) | Err(_))
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line(), 16).unwrap();
            body.extend(self.exactly(size));
            assert_eq!(self.line(), "");
            if size == 0 {
                return body;
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.socket.read_line(&mut line).unwrap();
        line.strip_suffix("\r\n").unwrap().to_owned()
    }
}
