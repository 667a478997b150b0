//! Turning the content of a tool result into the text a model reads.
//!
//! Invariant: nothing a tool returned disappears silently; what is not text is described.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

/// The text parts joined by newlines; other parts described in brackets; the structured content
/// as JSON where there is no text part.
pub(crate) fn text_of(result: &CallToolResult) -> String {
    let mut has_text = false;
    let mut parts = Vec::with_capacity(result.content.len() + 1);
    for block in &result.content {
        has_text |= is_text(block);
        parts.push(describe(block));
    }
    if let Some(value) = result.structured_content.as_ref().filter(|_| !has_text) {
        parts.push(value.to_string());
    }
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => parts.join("\n"),
    }
}

fn is_text(block: &ContentBlock) -> bool {
    match block {
        ContentBlock::Text(_) => true,
        ContentBlock::Resource(embedded) => {
            matches!(embedded.resource, ResourceContents::TextResourceContents { .. })
        }
        _ => false,
    }
}

fn describe(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(part) => part.text.clone(),
        ContentBlock::Image(part) => media("image", &part.mime_type, &part.data),
        ContentBlock::Audio(part) => media("audio", &part.mime_type, &part.data),
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { text, .. } => text.clone(),
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                let kind = mime_type.as_deref().unwrap_or("application/octet-stream");
                media(&format!("resource {uri}"), kind, blob)
            }
            _ => "[resource of an unknown kind]".into(),
        },
        ContentBlock::ResourceLink(link) => format!("[link {} {:?}]", link.uri, link.name),
        _ => "[content of an unknown kind]".into(),
    }
}

fn media(what: &str, mime_type: &str, base64: &str) -> String {
    let digits_count = base64.trim_end_matches('=').len();
    format!("[{what} {mime_type}, {} bytes]", digits_count * 3 / 4)
}
