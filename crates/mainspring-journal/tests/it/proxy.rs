//! A connection that fails on demand: stands between a journal and its server, passes bytes on, and
//! cuts, refuses or holds them when a test says so.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// What happens to a statement that is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It never reaches the server.
    Before,
    /// It reaches the server, and nobody waits for the answer.
    Meanwhile,
    /// The server answers, and the answer is lost.
    After,
}

/// See the module.
#[derive(Clone)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server_port: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    refuses: bool,
    /// Bytes stay where they are, in both directions.
    holds: bool,
    /// A text of statements, and how many of those that have it are to fail.
    cut: Option<(String, Cut, usize)>,
    cuts_done: usize,
    streams: Vec<TcpStream>,
}

impl Proxy {
    pub fn start(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { server_port, state, changed: Condvar::new() });
        let proxy = Self { port, shared: shared.clone() };
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if !shared.state.lock().unwrap().refuses {
                    shared.clone().connect(client);
                }
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts every connection; from now on new ones are, or are not, cut as well.
    pub fn refuse(&self, refuses: bool) {
        let mut state = self.shared.state.lock().unwrap();
        state.refuses = refuses;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Passes nothing on, or goes on passing.
    pub fn hold(&self, holds: bool) {
        self.shared.state.lock().unwrap().holds = holds;
        self.shared.changed.notify_all();
    }

    /// Lets the next statements with a text in them fail.
    pub fn cut(&self, text: &str, cut: Cut, times: usize) {
        self.shared.state.lock().unwrap().cut = Some((text.to_owned(), cut, times));
    }

    /// How many statements have failed so.
    pub fn cuts_done(&self) -> usize {
        self.shared.state.lock().unwrap().cuts_done
    }
}

impl Shared {
    fn connect(self: Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server_port)) else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            self.state.lock().unwrap().streams.push(stream.try_clone().unwrap());
        }
        // Whether the next answer on this connection is to be lost.
        let doomed = Arc::new(Mutex::new(false));
        let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let (shared, marked) = (self.clone(), doomed.clone());
        thread::spawn(move || shared.pump(up.0, up.1, |bytes| shared.ask(bytes, &marked)));
        let shared = self;
        thread::spawn(move || {
            shared.pump(server, client, |_| {
                if *doomed.lock().unwrap() { Next::Cut } else { Next::Pass }
            });
        });
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, decide: impl Fn(&[u8]) -> Next) {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let state = self.state.lock().unwrap();
            drop(self.changed.wait_while(state, |state| state.holds).unwrap());
            let next = decide(&buffer[..count]);
            if next == Next::Cut || to.write_all(&buffer[..count]).is_err() || next == Next::Last {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Looks at what a client sends.
    fn ask(&self, bytes: &[u8], doomed: &Mutex<bool>) -> Next {
        let mut state = self.state.lock().unwrap();
        let Some((text, cut, left)) = &mut state.cut else { return Next::Pass };
        if *left == 0 || !bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
            return Next::Pass;
        }
        let cut = *cut;
        *left -= 1;
        state.cuts_done += 1;
        match cut {
            Cut::Before => Next::Cut,
            Cut::Meanwhile => Next::Last,
            Cut::After => {
                *doomed.lock().unwrap() = true;
                Next::Pass
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Next {
    Pass,
    /// Pass it on, then cut.
    Last,
    Cut,
}
