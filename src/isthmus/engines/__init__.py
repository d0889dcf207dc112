"""What produces and consumes KV. One package per engine; the policy of when and where lies elsewhere."""
