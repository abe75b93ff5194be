"""The IBM MQ channel protocol as clients speak it on a server-connection channel, without any input or output."""
