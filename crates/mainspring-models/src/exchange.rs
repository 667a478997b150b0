//! Reading one answer from a direct connection.
//!
//! hyper reads the answer, as the client of a connection whose other half is made up: its request
//! goes nowhere, because the real one has been sent already. So its buffers live from the first
//! byte of the answer to the last, and no task stands behind a connection. Dropping an exchange
//! closes its connection; only an answer read to its end gives the connection back.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::http::response::Parts;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::direct::Direct;
use crate::endpoint::Endpoint;

/// An answer whose head has arrived.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) head: Parts,
    body: Incoming,
    reader: Reader,
    sender: SendRequest<String>,
    home: Option<Home>,
}

/// Where a connection goes after its answer.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) direct: Arc<Direct>,
    pub(crate) endpoint: Arc<Endpoint>,
}

/// Hyper's side of a connection, none once it is closed.
#[derive(Debug)]
struct Reader(Option<Connection<AnswerOnly, String>>);

/// The reading half of a socket; what is written is dropped.
#[derive(Debug)]
struct AnswerOnly {
    stream: TokioIo<TcpStream>,
    is_asked: bool,
    was_refused: bool,
}

impl Exchange {
    /// Reads the head of the answer to a request that was sent on `stream`.
    pub(crate) async fn begin(stream: TcpStream, home: Option<Home>) -> Result<Self, hyper::Error> {
        let io = AnswerOnly { stream: TokioIo::new(stream), is_asked: false, was_refused: false };
        let (mut sender, connection) = http1::handshake(io).await?;
        let mut reader = Reader(Some(connection));
        let mut request = hyper::Request::new(String::new());
        *request.method_mut() = hyper::Method::POST;
        let response = {
            let mut response = pin!(sender.send_request(request));
            // Hyper asks in its first round and listens from the next one on.
            std::future::poll_fn(|ctx| {
                reader.poll(ctx);
                reader.poll(ctx);
                response.as_mut().poll(ctx)
            })
            .await?
        };
        let (head, body) = response.into_parts();
        Ok(Self { head, body, reader, sender, home })
    }

    /// The next piece of the body, none at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        std::future::poll_fn(|ctx| self.poll_chunk(ctx)).await
    }

    fn poll_chunk(&mut self, ctx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, hyper::Error>> {
        // Hyper reads on only for a body that was asked for more, so the body comes first.
        for has_read in [false, true] {
            while let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(ctx) {
                match frame.transpose()?.map(hyper::body::Frame::into_data) {
                    Some(Ok(data)) => return Poll::Ready(Ok(Some(data))),
                    // Trailers say nothing about an answer.
                    Some(Err(_)) => {}
                    None => {
                        self.give_back(ctx);
                        return Poll::Ready(Ok(None));
                    }
                }
            }
            if !has_read {
                self.reader.poll(ctx);
            }
        }
        Poll::Pending
    }

    fn give_back(&mut self, ctx: &mut Context<'_>) {
        self.reader.poll(ctx);
        let (Some(connection), Some(home)) = (self.reader.0.take(), self.home.take()) else {
            return;
        };
        if !self.sender.is_ready() {
            return;
        }
        let parts = connection.into_parts();
        if parts.read_buf.is_empty() {
            home.direct.put(home.endpoint.host(), parts.io.stream.into_inner());
        }
    }
}

impl Reader {
    fn poll(&mut self, ctx: &mut Context<'_>) {
        let Some(connection) = &mut self.0 else { return };
        // An error goes to whoever waits for the head or the body.
        if Pin::new(connection).poll(ctx).is_ready() {
            self.0 = None;
        }
    }
}

impl Read for AnswerOnly {
    fn poll_read(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // The answer is there already, and would count as sent unasked.
        if !self.is_asked {
            // The first round is followed by another one anyway. One in which hyper could not ask,
            // as when its task had used up its turn, must not be the last.
            if self.was_refused {
                ctx.waker().wake_by_ref();
            }
            self.was_refused = true;
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(ctx, buffer)
    }
}

impl Write for AnswerOnly {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_asked = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
