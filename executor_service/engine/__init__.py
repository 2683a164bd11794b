"""The engine: who runs when, what is kept, what comes out. Knows no protobuf and no gRPC."""
