//! Calls over plain HTTP/1.1 without a proxy: who is connected to, and which connections wait.
//!
//! A request is written straight to its socket, and nothing is made to read its answer before the
//! first byte of it is there: a call that waits holds a socket and no buffer. A connection waits
//! here only while it is certain that nothing is left to read on it.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower_service::Service;

use crate::endpoint::Endpoint;
use crate::exchange::{Exchange, Home};
use crate::limits::TransportLimits;
use crate::pool::KEEPALIVE;
use crate::transport::TransportError;

/// Connects, and keeps connections for the next call.
#[derive(Debug)]
pub(crate) struct Direct {
    connector: HttpConnector,
    limits: TransportLimits,
    idle: Mutex<Idle>,
}

/// Connections that wait, by host and port; those of one server oldest first. No list is empty.
#[derive(Debug, Default)]
struct Idle {
    lists: HashMap<String, VecDeque<(Instant, TcpStream)>>,
    is_swept: bool,
}

/// How much of a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Nothing,
    Part,
    Whole,
}

impl Direct {
    pub(crate) fn new(limits: TransportLimits) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        Self { connector, limits, idle: Mutex::default() }
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// A waiting connection that turns out to be closed before anything was sent is passed over;
    /// once a part of the request is out, an end is the caller's to judge.
    pub(crate) async fn send(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        body: &[u8],
        connect_ms_max: u64,
    ) -> Result<Exchange, TransportError> {
        let (stream, sent) = {
            let head = endpoint.request_head(body.len());
            let waiting = self.take(&endpoint.host);
            let used = match waiting {
                Some(stream) => {
                    let sent = write(&stream, &head, body).await;
                    Some((stream, sent)).filter(|(_, sent)| *sent != Sent::Nothing)
                }
                None => None,
            };
            match used {
                Some(used) => used,
                None => {
                    let stream = Box::pin(self.connect(endpoint, connect_ms_max)).await?;
                    let sent = write(&stream, &head, body).await;
                    (stream, sent)
                }
            }
        };
        // An error here is met again, and told, by the reader.
        let _ = stream.readable().await;
        let home = Home { direct: Arc::clone(self), endpoint: Arc::clone(endpoint) };
        let home = (sent == Sent::Whole).then_some(home);
        Box::pin(Exchange::begin(stream, home)).await.map_err(TransportError::Http)
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        connect_ms_max: u64,
    ) -> Result<TcpStream, TransportError> {
        let connecting = self.connector.clone().call(endpoint.origin.clone());
        let connect_max = Duration::from_millis(connect_ms_max);
        match tokio::time::timeout(connect_max, connecting).await {
            Ok(Ok(stream)) => Ok(stream.into_inner()),
            Ok(Err(error)) => {
                Err(TransportError::Connect(Box::<dyn Error + Send + Sync>::from(error)))
            }
            Err(_) => Err(TransportError::ConnectTimeout),
        }
    }

    /// The connection used last, if one waits and is still open.
    fn take(&self, host: &str) -> Option<TcpStream> {
        let now = Instant::now();
        let idle_max = self.idle_max();
        // Nothing panics while the lock is held, and no list has a half-done state.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let list = idle.lists.get_mut(host)?;
        let mut found = None;
        while let Some((since, stream)) = list.pop_back() {
            if now - since < idle_max && is_open(&stream) {
                found = Some(stream);
                break;
            }
        }
        if list.is_empty() {
            idle.lists.remove(host);
        }
        found
    }

    /// Keeps a connection on which an answer was read to its end, if there is room.
    pub(crate) fn put(self: &Arc<Self>, host: &str, stream: TcpStream) {
        let TransportLimits { idle_connections_max, idle_ms_max, pools_max, .. } = self.limits;
        if idle_connections_max == 0 || idle_ms_max == 0 {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = idle.lists.get_mut(host) {
            if list.len() < idle_connections_max {
                list.push_back((Instant::now(), stream));
            }
        } else if idle.lists.len() < pools_max {
            idle.lists.insert(host.to_owned(), VecDeque::from([(Instant::now(), stream)]));
        }
        if !idle.is_swept {
            idle.is_swept = true;
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Closes what has waited for too long, and tells when to look again; none if nothing waits.
    fn close_expired(&self) -> Option<Instant> {
        let now = Instant::now();
        let idle_max = self.idle_max();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for list in idle.lists.values_mut() {
            while list.front().is_some_and(|(since, _)| now - *since >= idle_max) {
                list.pop_front();
            }
        }
        idle.lists.retain(|_, list| !list.is_empty());
        let oldest = idle.lists.values().filter_map(|list| Some(list.front()?.0)).min();
        idle.is_swept = oldest.is_some();
        oldest.map(|since| since + idle_max)
    }

    fn idle_max(&self) -> Duration {
        Duration::from_millis(self.limits.idle_ms_max)
    }
}

/// Closes expired connections as long as any wait and their client lives.
async fn sweep(direct: Weak<Direct>) {
    while let Some(next) = direct.upgrade().and_then(|direct| direct.close_expired()) {
        tokio::time::sleep_until(next).await;
    }
}

/// Sends a request, until the server closes the connection or answers before it has all of it.
async fn write(stream: &TcpStream, head: &[u8], body: &[u8]) -> Sent {
    let length = head.len() + body.len();
    let mut written = 0;
    while written < length {
        let head_left = &head[written.min(head.len())..];
        let body_left = &body[written.saturating_sub(head.len())..];
        match stream.try_write_vectored(&[IoSlice::new(head_left), IoSlice::new(body_left)]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stream.ready(Interest::READABLE | Interest::WRITABLE).await.is_err() {
                    break;
                }
                // What was readable once may no longer be; looking through `try_io` clears it.
                if stream.try_io(Interest::READABLE, || look(stream)).is_ok() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    match written {
        0 => Sent::Nothing,
        _ if written < length => Sent::Part,
        _ => Sent::Whole,
    }
}

/// Whether a waiting connection can carry a request: the other side has neither closed it nor sent
/// anything unasked. The kernel is asked, since the runtime may not have heard of it yet.
fn is_open(stream: &TcpStream) -> bool {
    look(stream).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Looks at the next byte to be read and leaves it there.
fn look(stream: &TcpStream) -> io::Result<usize> {
    SockRef::from(stream).peek(&mut [MaybeUninit::uninit()])
}
