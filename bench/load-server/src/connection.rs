//! One client connection: its socket, its buffers and what it waits for.
//!
//! Owns reads and writes. Invariant: `output` is empty unless the socket's send buffer is full, and
//! an idle connection keeps at most `KEEP_BYTES_MAX` in each buffer, so that thousands stay small.

use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;

use crate::answer::{Plan, Streamed};
use crate::request::{BODY_BYTES_MAX, HEAD_BYTES_MAX, Parser};

/// Buffer space that an idle connection keeps for its next request.
const KEEP_BYTES_MAX: usize = 64 * 1024;
/// Bytes of requests that may lie unread behind the one being answered.
const INPUT_BYTES_MAX: usize = 2 * (BODY_BYTES_MAX + HEAD_BYTES_MAX);

/// What a connection does next.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// Reads a request.
    Reading,
    /// Has a request whose answer is due later.
    Waiting(Plan),
    /// Is in the middle of a paced stream.
    Streaming(Plan, Streamed),
}

/// The peer is gone or broke a bound: the connection is to be dropped.
#[derive(Debug)]
pub struct Gone;

/// One client connection.
pub struct Connection {
    /// The socket.
    pub socket: TcpStream,
    /// Tells this connection from others that had its slot before.
    pub id: u64,
    /// Bytes that no request has taken yet.
    pub input: Vec<u8>,
    /// Bytes that the socket has not taken yet.
    pub output: Vec<u8>,
    /// The request that is being read.
    pub parser: Parser,
    /// What comes next.
    pub phase: Phase,
    /// Close once the present answer is sent.
    pub last: bool,
    sent: usize,
}

impl Connection {
    /// A connection that reads its first request.
    pub fn new(socket: TcpStream, id: u64) -> Self {
        Self {
            socket,
            id,
            input: Vec::new(),
            output: Vec::new(),
            parser: Parser::default(),
            phase: Phase::Reading,
            last: false,
            sent: 0,
        }
    }

    /// Reads what the socket has, through `scratch`. With `to_end` it reads until the peer's close.
    ///
    /// # Errors
    /// `Gone` when the peer closed or sent too much ahead.
    pub fn fill(&mut self, scratch: &mut [u8], to_end: bool) -> Result<(), Gone> {
        loop {
            match self.socket.read(scratch) {
                Ok(0) => return Err(Gone),
                Ok(count) => {
                    self.input.extend_from_slice(&scratch[..count]);
                    if self.input.len() > INPUT_BYTES_MAX {
                        return Err(Gone);
                    }
                    // A short read has emptied the socket: epoll(7) lets an edge-triggered
                    // reader stop here, which saves a system call per request.
                    if count < scratch.len() && !to_end {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Sends as much output as the socket takes.
    ///
    /// # Errors
    /// `Gone` when the peer is gone, or all of the last answer is sent.
    pub fn flush(&mut self) -> Result<(), Gone> {
        while self.sent < self.output.len() {
            match self.socket.write(&self.output[self.sent..]) {
                Ok(0) => return Err(Gone),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
        self.sent = 0;
        clear(&mut self.output);
        let is_over = self.last && matches!(self.phase, Phase::Reading);
        if is_over { Err(Gone) } else { Ok(()) }
    }

    /// Takes one request's bytes away and makes ready for the next.
    pub fn consume(&mut self, count: usize) {
        self.parser.reset();
        if count == self.input.len() {
            clear(&mut self.input);
        } else {
            self.input.drain(..count);
        }
    }
}

fn clear(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEEP_BYTES_MAX);
}
