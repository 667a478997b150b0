//! One worker: accepts connections and serves them until it is told to stop.

use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::io::Socket;
use crate::service::Service;

/// How long nothing is accepted after the system had no descriptor left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// When a worker stops: connections end after their answers, at the latest at that instant.
pub(crate) type Stop = watch::Receiver<Option<Instant>>;

/// Serves until told to stop. True if every answer under way then was sent.
pub(crate) async fn serve(service: Arc<Service>, listener: TcpListener, mut stop: Stop) -> bool {
    let connections_max = service.shared.limits.connections_max.clamp(1, 1 << 20);
    let room = Arc::new(Semaphore::new(connections_max));
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return true };
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            (permit, accepted) = accept(&listener, &room) => match accepted {
                Ok(stream) => {
                    let service = Arc::clone(&service);
                    tokio::task::spawn_local(connection(service, stream, stop.clone(), permit));
                }
                Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
            },
        }
    }
    drop(listener);
    let deadline = stop.borrow().unwrap_or_else(Instant::now);
    let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
    tokio::time::timeout_at(deadline, room.acquire_many(all)).await.is_ok()
}

async fn accept(
    listener: &tokio::net::TcpListener,
    room: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, std::io::Result<TcpStream>) {
    // The semaphore is never closed, so there always comes a permit.
    let permit = Arc::clone(room).acquire_owned().await.ok();
    (permit, listener.accept().await.map(|(stream, _)| stream))
}

async fn connection(
    service: Arc<Service>,
    stream: TcpStream,
    mut stop: Stop,
    _permit: Option<OwnedSemaphorePermit>,
) {
    let limits = service.shared.limits;
    let _ = stream.set_nodelay(true);
    let socket = Socket::new(stream, Duration::from_millis(limits.stall_ms_max));
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.head_ms_max))
        .max_buf_size(limits.head_bytes_max.max(8_192))
        .max_headers(limits.headers_max)
        .serve_connection(socket, answer);
    let mut served = pin!(served);
    // What ends a connection is the client's to know; there is nobody else to tell.
    tokio::select! {
        _ = served.as_mut() => return,
        () = stopped(&mut stop) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}

/// Waits until the gateway is to stop, or is gone.
async fn stopped(stop: &mut Stop) {
    let _ = stop.wait_for(Option::is_some).await;
}
