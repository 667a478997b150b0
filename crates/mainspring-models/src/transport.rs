//! One answer and one error for both ways to a server: direct, and through reqwest.

use std::error::Error;

use bytes::Bytes;
use reqwest::header::HeaderMap;

use crate::exchange::Exchange;

/// An answer whose head has arrived; boxed, so that a waiting call stays small.
pub(crate) enum Reply {
    Direct(Box<Exchange>),
    Client(Box<reqwest::Response>),
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Direct(exchange) => exchange.head.status.as_u16(),
            Self::Client(response) => response.status().as_u16(),
        }
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        match self {
            Self::Direct(exchange) => &exchange.head.headers,
            Self::Client(response) => response.headers(),
        }
    }

    /// The next piece of the body, none at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, TransportError> {
        match self {
            Self::Direct(exchange) => exchange.chunk().await.map_err(TransportError::Http),
            Self::Client(response) => response.chunk().await.map_err(TransportError::Client),
        }
    }
}

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(crate) enum TransportError {
    /// The connect deadline passed on a direct way.
    ConnectTimeout,
    /// No direct connection could be made.
    Connect(Box<dyn Error + Send + Sync>),
    /// A direct connection ended, or carried something else than HTTP.
    Http(hyper::Error),
    /// Any failure of reqwest.
    Client(reqwest::Error),
}

impl TransportError {
    /// Whether there never was a connection.
    pub(crate) fn is_connect(&self) -> bool {
        match self {
            Self::ConnectTimeout | Self::Connect(_) => true,
            Self::Http(_) => false,
            Self::Client(error) => error.is_connect(),
        }
    }

    /// Whether a deadline passed.
    pub(crate) fn is_timeout(&self) -> bool {
        match self {
            Self::ConnectTimeout => true,
            Self::Connect(_) | Self::Http(_) => false,
            Self::Client(error) => error.is_timeout(),
        }
    }

    /// Whether the body could not be decoded.
    pub(crate) fn is_decode(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_decode())
    }

    /// The outermost cause. That of reqwest lies below its own error, which names the address.
    pub(crate) fn cause(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::ConnectTimeout => None,
            Self::Connect(error) => Some(error.as_ref()),
            Self::Http(error) => Some(error),
            Self::Client(error) => error.source(),
        }
    }
}
