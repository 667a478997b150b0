//! Provider wire formats: neutral messages to request bytes, answer bytes to neutral values.
//!
//! Pure: bytes in, values out, without clock, randomness or I/O. A [`ChatCodec`] encodes the
//! unchanging parts of a request once; a body is then spliced from encoded parts and never encoded
//! again. Reading starts at `codec.rs` for requests and at `stream.rs` for answers.

mod answer;
mod codec;
mod encode;
mod failure;
mod http_date;
mod limits;
mod node;
mod prompt;
mod response;
mod schema;
mod sse;
mod stream;

pub use answer::{CallIds, Decoded};
pub use codec::ChatCodec;
pub use failure::{HttpFailure, RETRY_AFTER_MS_MAX, RetryHeaders, classify_error, error_of_body};
pub use limits::WireLimits;
pub use sse::{SseParser, SseTooLong};
pub use stream::{Delta, StreamDecoder};
