//! Provider wire formats: neutral messages to request bytes, answer bytes to neutral values.
//!
//! Pure: bytes in, values out, without clock, randomness or I/O. Each API has a folder with its
//! requests and its answers; what they have in common stands beside them. A [`Codec`] encodes the
//! unchanging parts of a request once; a body is then spliced from encoded parts and never encoded
//! again. Reading starts at `codec.rs` for requests and at `stream.rs` for answers.

mod answer;
mod chat;
mod codec;
mod failure;
mod http_date;
mod inbound;
mod limits;
mod logprobs;
mod messages;
mod node;
mod outbound;
mod parts;
mod prompt;
mod responses;
mod schema;
mod spell;
mod sse;
mod stream;
mod value;

pub use answer::{CallIds, Decoded};
pub use codec::Codec;
pub use failure::{HttpFailure, RETRY_AFTER_MS_MAX, RetryHeaders, classify_error, error_of_body};
pub use inbound::{BadRequest, ChatRequest, ChatTool, INBOUND_MESSAGES_MAX, INBOUND_TOOLS_MAX};
pub use limits::WireLimits;
pub use outbound::{ChatHead, DONE_CHUNK, error_body};
pub use sse::{SseParser, SseTooLong};
pub use stream::{Delta, StreamDecoder};
