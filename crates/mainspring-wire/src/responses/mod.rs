//! OpenAI Responses: `/responses`, without the server keeping anything (`store` is false).
//!
//! # Source
//! OpenAI API reference, "Responses" and "Streaming events"; guide "Reasoning models", section
//! "Encrypted reasoning items".

mod answer;
mod request;
mod stream;

pub(crate) use answer::decode;
pub(crate) use request::{message, request};
pub(crate) use stream::Stream;
