"""What both servers stand on. Knows gRPC and processes; knows no word of the domain."""
