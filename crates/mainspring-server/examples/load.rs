//! Asks a Chat Completions server at a steady rate, or as fast as it answers, and tells how long
//! answers took. For measurements only.
//!
//! ```text
//! cargo run --release -p mainspring-server --example load -- HOST:PORT MODEL \
//!     --rate 2000 --seconds 5 --connections 32 [--stream]
//! ```
//!
//! Each connection is a thread with a socket. A request's time runs from its first byte to the last
//! byte of its answer. Prints one line of JSON.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

struct Options {
    address: String,
    model: String,
    /// Requests a second of all connections; 0: as many as are answered.
    rate: f64,
    seconds: f64,
    connections: usize,
    stream: bool,
}

fn main() {
    let options = options();
    let body = format!(
        "{{\"model\":\"{}\",\"messages\":[{{\"role\":\"user\",\"content\":\"{}\"}}],\"stream\":{}}}",
        options.model,
        "What is the capital of France, and how many people live there? ".repeat(8),
        options.stream
    );
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        options.address,
        body.len()
    );
    let started = Instant::now();
    let mut times: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.connections)
            .map(|idx| {
                let (options, request) = (&options, request.as_bytes());
                scope.spawn(move || connection(options, request, idx))
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no thread panics")).collect()
    });
    let wall_s = started.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| {
        let idx = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(idx).copied().unwrap_or(0)
    };
    println!(
        "{{\"requests\":{},\"rate\":{:.1},\"p50_us\":{},\"p90_us\":{},\"p99_us\":{},\"max_us\":{}}}",
        times.len(),
        times.len() as f64 / wall_s,
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

fn options() -> Options {
    let mut args = std::env::args().skip(1);
    let mut options = Options {
        address: args.next().expect("the first argument is HOST:PORT"),
        model: args.next().expect("the second argument is a model"),
        rate: 0.0,
        seconds: 5.0,
        connections: 32,
        stream: false,
    };
    while let Some(name) = args.next() {
        if name == "--stream" {
            options.stream = true;
            continue;
        }
        let value: f64 = args
            .next()
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("{name} needs a number"));
        match name.as_str() {
            "--rate" => options.rate = value,
            "--seconds" => options.seconds = value,
            "--connections" => options.connections = (value as usize).max(1),
            _ => panic!("there is no option {name}"),
        }
    }
    options
}

/// Asks on one connection until the time is up; how long each answer took, in microseconds.
fn connection(options: &Options, request: &[u8], idx: usize) -> Vec<u64> {
    let stream = TcpStream::connect(&options.address).expect("the server can be reached");
    stream.set_nodelay(true).expect("a socket takes the option");
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let gap = match options.rate > 0.0 {
        true => Duration::from_secs_f64(options.connections as f64 / options.rate),
        false => Duration::ZERO,
    };
    let begin = Instant::now();
    // The connections take turns, so that not all ask at once.
    let mut next = begin + gap.mul_f64(idx as f64 / options.connections as f64);
    let mut times = Vec::with_capacity(1 << 16);
    while begin.elapsed().as_secs_f64() < options.seconds {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let asked = Instant::now();
        reader.get_mut().write_all(request).expect("the server reads");
        read(&mut reader);
        times.push(asked.elapsed().as_micros() as u64);
        next = (next + gap).max(Instant::now());
    }
    times
}

fn read(reader: &mut BufReader<TcpStream>) {
    let mut line = String::new();
    let mut length = None;
    reader.read_line(&mut line).expect("the server answers");
    assert!(line.starts_with("HTTP/1.1 200"), "the server answered {line}");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).expect("the server answers");
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
    }
    match length {
        Some(length) => skip(reader, length),
        None => loop {
            line.clear();
            reader.read_line(&mut line).expect("the server answers");
            let length = usize::from_str_radix(line.trim(), 16).expect("a chunk has a length");
            skip(reader, length + 2);
            if length == 0 {
                return;
            }
        },
    }
}

fn skip(reader: &mut BufReader<TcpStream>, length: usize) {
    let copied = std::io::copy(&mut reader.take(length as u64), &mut std::io::sink());
    assert_eq!(copied.ok(), Some(length as u64), "the server sent less than it said");
}
