//! A model server that does what a test says, a client that sends bytes, and a gateway between.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainspring_server::{Gateway, GatewayConfig};
use serde_json::{Value, json};

/// A request as a server reads it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    pub body: Value,
}

/// What a model server does with a request; it owns the connection then.
pub type Act = Arc<dyn Fn(&Seen, &mut TcpStream) + Send + Sync>;

/// A model server; it keeps every request that it got.
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    pub fn start(act: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (kept, act): (_, Act) = (Arc::clone(&seen), Arc::new(act));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (kept, act) = (Arc::clone(&kept), Arc::clone(&act));
                std::thread::spawn(move || serve(stream.unwrap(), &kept, &act));
            }
        });
        Self { address, seen }
    }

    /// One that gives the texts one after the other, the last one for ever.
    pub fn saying(texts: &[&str]) -> Self {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let count = Mutex::new(0);
        Self::start(move |seen, stream| {
            let mut count = count.lock().unwrap();
            let text = &texts[(*count).min(texts.len() - 1)];
            *count += 1;
            answer(seen, stream, text);
        })
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn bodies(&self) -> Vec<Value> {
        self.seen.lock().unwrap().iter().map(|seen| seen.body.clone()).collect()
    }

    pub fn model(&self, name: &str) -> Value {
        json!({
            "model": {
                "name": name,
                "base_url": format!("http://{}/v1", self.address),
                "tool_mode": "native",
                "output_mode": "native",
                "price": {"input_usd": 1.0, "output_usd": 2.0},
            },
            "access": {"api_key": "not-a-real-key-1234"},
        })
    }
}

fn serve(mut stream: TcpStream, kept: &Mutex<Vec<Seen>>, act: &Act) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(seen) = read_request(&mut reader) {
        kept.lock().unwrap().push(seen.clone());
        act(&seen, &mut stream);
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Seen> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line.to_ascii_lowercase());
    }
    let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { head, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.trim())
}

/// Answers with a text: whole, or as a stream of three pieces if that was asked for.
pub fn answer(seen: &Seen, stream: &mut TcpStream, text: &str) {
    if seen.body["stream"] != true {
        let message = json!({"role": "assistant", "content": text});
        return message_answer(stream, &message, "stop");
    }
    begin_stream(stream);
    let third = text.len() / 3;
    for piece in [&text[..third], &text[third..2 * third], &text[2 * third..]] {
        send_event(stream, &json!({"choices": [{"index": 0, "delta": {"content": piece}}]}));
    }
    end_stream(stream);
}

pub fn message_answer(stream: &mut TcpStream, message: &Value, finish: &str) {
    let body = json!({
        "id": "x", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    });
    respond(stream, "200 OK", "", &body.to_string());
}

pub fn begin_stream(stream: &mut TcpStream) {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
}

pub fn send_event(stream: &mut TcpStream, event: &Value) {
    let data = format!("data: {event}\n\n");
    // The other side may be gone.
    let _ = write!(stream, "{:x}\r\n{data}\r\n", data.len());
}

pub fn end_stream(stream: &mut TcpStream) {
    send_event(stream, &json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
    send_event(
        stream,
        &json!({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}),
    );
    let _ = stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

pub fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &str) {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body.as_bytes());
}

/// A gateway that serves these routes: names with models, smallest first.
pub fn gateway(routes: &[(&str, Vec<Value>)]) -> Gateway {
    gateway_with(routes, |_| {})
}

pub fn gateway_with(routes: &[(&str, Vec<Value>)], change: impl FnOnce(&mut Value)) -> Gateway {
    Gateway::open(&config(routes, change)).unwrap()
}

pub fn config(routes: &[(&str, Vec<Value>)], change: impl FnOnce(&mut Value)) -> GatewayConfig {
    let routes: Vec<_> = routes
        .iter()
        .map(|(name, models)| json!({"name": name, "models": models, "policy": {"explore": 0.0}}))
        .collect();
    let mut config = json!({"listen": "127.0.0.1:0", "routes": routes});
    change(&mut config);
    serde_json::from_value(config).unwrap()
}

/// An answer as a client reads it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}", self.body))
    }

    /// The fields of an OpenAI error: status, code, param.
    pub fn refusal(&self) -> (u16, String, Value) {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{}", self.body);
        (self.status, error["code"].as_str().unwrap().to_owned(), error["param"].clone())
    }

    /// The data of a stream's events.
    pub fn events(&self) -> Vec<String> {
        let events = self.body.split("\n\n").filter(|event| !event.is_empty());
        events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }

    /// The text of a streamed answer.
    pub fn streamed_text(&self) -> String {
        let events = self.events();
        let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
        let texts = chunks.filter_map(|chunk| {
            chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
        });
        texts.collect()
    }
}

/// A connection to a gateway.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn new(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(gateway.address()).unwrap();
        // Only so that a broken gateway fails a test instead of hanging it.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // It may have been refused already.
        let _ = self.0.get_mut().write_all(bytes);
    }

    pub fn close_write(&mut self) {
        self.0.get_mut().shutdown(Shutdown::Write).unwrap();
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// The next answer; none if the connection ended.
    pub fn read(&mut self) -> Option<Answer> {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let body = match headers.get("content-length") {
            Some(length) => {
                let mut body = vec![0; length.parse().unwrap()];
                self.0.read_exact(&mut body).ok()?;
                body
            }
            None => self.chunked(),
        };
        Some(Answer { status, headers, body: String::from_utf8(body).unwrap() })
    }

    fn chunked(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let Ok(length) = usize::from_str_radix(line.trim(), 16) else { return body };
            let mut chunk = vec![0; length + 2];
            if self.0.read_exact(&mut chunk).is_err() || length == 0 {
                return body;
            }
            body.extend_from_slice(&chunk[..length]);
        }
    }

    pub fn ask(&mut self, request: &Value) -> Answer {
        self.post("", &request.to_string()).unwrap()
    }

    pub fn post(&mut self, headers: &str, body: &str) -> Option<Answer> {
        self.send(post(headers, body).as_bytes());
        self.read()
    }

    pub fn get(&mut self, path: &str, headers: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").as_bytes());
        self.read().unwrap()
    }
}

pub fn post(headers: &str, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n\
         content-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hello"}]})
}

/// Tells a test that something has happened, and lets something wait for the test.
pub fn signal() -> (Sender<()>, Receiver<()>) {
    channel()
}
