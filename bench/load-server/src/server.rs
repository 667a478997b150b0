//! The event loop: one thread, one epoll, all connections.
//!
//! Owns sockets, timers and counts. Invariant: a timer acts only on the connection that set it,
//! even when another has taken its slot since. Reading starts at `Server::run`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use crate::answer::{Plan, Renderer};
use crate::connection::{Connection, Gone, Phase};
use crate::options::Options;
use crate::request::{Request, Route};
use crate::trouble::{Spoiled, Trouble, Verdict};

const LISTENER: Token = Token(usize::MAX);
const EVENTS_MAX: usize = 1024;
const SCRATCH_BYTES: usize = 256 * 1024;

/// When a connection acts next; ordered by time first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Timer {
    due: Instant,
    slot: usize,
    connection_id: u64,
}

/// The load server.
pub struct Server {
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free_slots: Vec<usize>,
    timers: BinaryHeap<Reverse<Timer>>,
    renderer: Renderer,
    trouble: Trouble,
    delay: Duration,
    token_gap: Duration,
    scratch: Vec<u8>,
    accepted_count: u64,
    request_count: u64,
    answer_count: u64,
    accept_again: bool,
}

/// What a request leads to.
enum Step {
    Json(&'static str, String),
    Chat(Plan),
    /// An answer with the key's limits in its head; nothing delays it.
    ChatWith(Plan, String),
    Spoil(Plan, Spoiled),
}

/// Connections that may wait to be accepted. A burst of clients past it is answered only when they
/// ask again after a second, which would be measured as their latency.
const BACKLOG: i32 = 4096;

/// A listener whose queue holds a burst of all the clients that a measurement starts.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Server {
    /// Listens on loopback.
    ///
    /// # Errors
    /// The port is taken, or the process may not open more files.
    pub fn bind(options: Options) -> io::Result<Self> {
        let poll = Poll::new()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
        let mut listener = TcpListener::from_std(listen(address)?);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            connections: Vec::new(),
            free_slots: Vec::new(),
            timers: BinaryHeap::new(),
            delay: options.delay,
            token_gap: options.token_gap,
            trouble: Trouble::new(&options),
            renderer: Renderer::new(options),
            scratch: vec![0; SCRATCH_BYTES],
            accepted_count: 0,
            request_count: 0,
            answer_count: 0,
            accept_again: false,
        })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// The poll itself failed; a connection's failure ends only that connection.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            let wait = self.timers.peek().map(|Reverse(timer)| {
                let now = Instant::now();
                timer.due.saturating_duration_since(now)
            });
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    Token(slot) => self.on_socket(slot, event),
                }
            }
            self.fire_timers();
            if self.accept_again {
                self.accept();
            }
        }
    }

    /// Accepts all who wait. Out of file descriptors, it goes on once a connection has closed.
    fn accept(&mut self) {
        self.accept_again = false;
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => self.admit(socket),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    eprintln!("accept failed with {} connections open: {error}", self.open_count());
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut socket: mio::net::TcpStream) {
        let slot = self.free_slots.pop().unwrap_or(self.connections.len());
        let both = Interest::READABLE | Interest::WRITABLE;
        let ready = socket
            .set_nodelay(true)
            .and_then(|()| (self.poll.registry()).register(&mut socket, Token(slot), both));
        if slot == self.connections.len() {
            self.connections.push(None);
        }
        if ready.is_err() {
            self.free_slots.push(slot);
            return;
        }
        self.accepted_count += 1;
        self.connections[slot] = Some(Connection::new(socket, self.accepted_count));
    }

    fn on_socket(&mut self, slot: usize, event: &Event) {
        self.with_connection(slot, None, |server, connection| {
            if !connection.output.is_empty() {
                connection.flush()?;
            }
            if event.is_readable() || event.is_read_closed() {
                connection.fill(&mut server.scratch, event.is_read_closed())?;
                server.take_requests(slot, connection)?;
            }
            Ok(())
        });
    }

    fn fire_timers(&mut self) {
        if self.timers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(Reverse(timer)) = self.timers.pop() {
            if timer.due > now {
                self.timers.push(Reverse(timer));
                return;
            }
            let id = Some(timer.connection_id);
            self.with_connection(timer.slot, id, |server, connection| {
                server.on_due(timer.slot, connection, timer.due)?;
                server.take_requests(timer.slot, connection)
            });
        }
    }

    /// Lets `act` use a connection, and drops the connection when that says so. With an id, only
    /// the connection that has it.
    fn with_connection(
        &mut self,
        slot: usize,
        id: Option<u64>,
        act: impl FnOnce(&mut Self, &mut Connection) -> Result<(), Gone>,
    ) {
        let Some(mut connection) = self.connections[slot].take() else {
            return;
        };
        let is_other = id.is_some_and(|id| id != connection.id);
        if is_other || act(self, &mut connection).is_ok() {
            self.connections[slot] = Some(connection);
        } else {
            drop(connection);
            self.free_slots.push(slot);
            self.accept_again = true;
        }
    }

    /// Takes every whole request that may be answered now.
    fn take_requests(&mut self, slot: usize, connection: &mut Connection) -> Result<(), Gone> {
        while matches!(connection.phase, Phase::Reading) && !connection.input.is_empty() {
            let (step, consumed) = match connection.parser.advance(&connection.input) {
                Ok(None) => return Ok(()),
                Ok(Some(request)) => {
                    connection.last = !request.keep_alive;
                    (self.step(&request), request.consumed)
                }
                Err(refusal) => {
                    connection.last = true;
                    let body = error_body(refusal);
                    let step = Step::Json("400 Bad Request", body);
                    (step, connection.input.len())
                }
            };
            connection.consume(consumed);
            match step {
                Step::Json(status, body) => {
                    self.renderer.json(status, &body, &mut connection.output);
                    connection.flush()?;
                }
                Step::ChatWith(plan, lines) => {
                    self.renderer.chat_with(&plan, &lines, &mut connection.output);
                    self.answer_count += 1;
                    connection.flush()?;
                }
                Step::Spoil(plan, spoiled) => {
                    self.renderer.spoiled(&plan, &spoiled, &mut connection.output);
                    connection.last |= spoiled == Spoiled::Cut;
                    if spoiled == Spoiled::Hang {
                        connection.phase = Phase::Waiting(plan);
                    }
                    connection.flush()?;
                }
                Step::Chat(plan) => {
                    connection.phase = Phase::Waiting(plan);
                    if self.delay.is_zero() {
                        self.on_due(slot, connection, Instant::now())?;
                    } else {
                        self.set_timer(slot, connection.id, Instant::now() + self.delay);
                    }
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, request: &Request<'_>) -> Step {
        match request.route {
            Route::Chat => {
                self.request_count += 1;
                let plan = self.renderer.plan(request.body);
                match self.trouble.judge(request.key, Instant::now()) {
                    Verdict::Serve(lines) if lines.is_empty() => Step::Chat(plan),
                    Verdict::Serve(lines) => Step::ChatWith(plan, lines),
                    Verdict::Spoil(spoiled) => Step::Spoil(plan, spoiled),
                }
            }
            Route::Models => Step::Json("200 OK", MODELS.to_owned()),
            Route::Stats => Step::Json("200 OK", self.stats()),
            Route::Unknown => Step::Json("404 Not Found", error_body("no such path")),
        }
    }

    /// Writes what is due on a connection that waits or streams.
    fn on_due(
        &mut self,
        slot: usize,
        connection: &mut Connection,
        due: Instant,
    ) -> Result<(), Gone> {
        let out = &mut connection.output;
        let next = match connection.phase {
            Phase::Reading => Phase::Reading,
            Phase::Waiting(plan) if plan.stream && !self.token_gap.is_zero() => {
                Phase::Streaming(plan, self.renderer.stream_start(&plan, out))
            }
            Phase::Waiting(plan) => {
                self.renderer.chat(&plan, out);
                Phase::Reading
            }
            Phase::Streaming(plan, mut at) => {
                if self.renderer.stream_piece(&plan, &mut at, out) {
                    Phase::Streaming(plan, at)
                } else {
                    Phase::Reading
                }
            }
        };
        connection.phase = next;
        match next {
            Phase::Streaming(..) => self.set_timer(slot, connection.id, due + self.token_gap),
            Phase::Reading | Phase::Waiting(_) => self.answer_count += 1,
        }
        connection.flush()
    }

    fn set_timer(&mut self, slot: usize, connection_id: u64, due: Instant) {
        self.timers.push(Reverse(Timer { due, slot, connection_id }));
    }

    fn open_count(&self) -> usize {
        self.connections.len() - self.free_slots.len()
    }

    fn stats(&self) -> String {
        format!(
            "{{\"request_count\":{},\"answer_count\":{},\"refused_count\":{},\
             \"fault_count\":{},\"open_connection_count\":{}}}",
            self.request_count,
            self.answer_count,
            self.trouble.refused_count,
            self.trouble.fault_count,
            self.open_count(),
        )
    }
}

const MODELS: &str = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\
                      \"created\":1700000000,\"owned_by\":\"bench\"}]}";

fn error_body(message: &str) -> String {
    format!(
        "{{\"error\":{{\"message\":\"{message}\",\"type\":\"invalid_request_error\",\
         \"param\":null,\"code\":null}}}}"
    )
}
