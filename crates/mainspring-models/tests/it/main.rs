//! Model calls against a real socket, with a server that also behaves badly.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod calls;
mod connections;
mod endpoint;
mod failures;
mod proxied;
mod server;

use std::sync::Arc;

use mainspring_models::{Endpoint, ModelClient, ModelReply, ModelRequest, TransportLimits};
use mainspring_session::{AgentSpec, CallIndex, Message};
use mainspring_wire::{CallIds, ChatCodec, Delta, HttpFailure};
use serde_json::json;

const KEY: &str = "not-a-real-key";

fn client() -> ModelClient {
    ModelClient::new(TransportLimits::default()).unwrap()
}

/// A request to a server, with deadlines that no test reaches unless it lowers them.
fn request(base_url: &str, stream: bool) -> ModelRequest {
    let model = json!({"name": "m", "base_url": base_url, "tool_mode": "native",
                       "output_mode": "native"});
    let agent = json!({"name": "a", "models": [model]});
    let agent: AgentSpec = serde_json::from_value(agent).unwrap();
    let codec = ChatCodec::new(&agent, &agent.models[0], stream).unwrap();
    let mut history = Vec::new();
    codec.encode_message(&Message::user("hello"), &mut history);
    ModelRequest {
        endpoint: Arc::new(Endpoint::new(base_url, Some(KEY), &[]).unwrap()),
        body: codec.body(&history).into(),
        codec: Arc::new(codec),
        ids: CallIds { first: CallIndex(0) },
        connect_ms_max: 60_000,
        first_token_ms_max: 60_000,
        total_ms_max: 60_000,
    }
}

async fn call(request: ModelRequest) -> Result<ModelReply, HttpFailure> {
    client().call(request, &mut |_| {}).await
}

/// A call with the texts that came as deltas.
async fn call_with_deltas(
    client: &ModelClient,
    request: ModelRequest,
) -> (Result<ModelReply, HttpFailure>, Vec<String>) {
    let mut texts = Vec::new();
    let mut on_delta = |delta: Delta<'_>| match delta {
        Delta::Text(text) => texts.push(text.to_owned()),
        other => panic!("{other:?}"),
    };
    let result = client.call(request, &mut on_delta).await;
    (result, texts)
}
